from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyqa_ray.core import said
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import speeds
from tinyqa_ray.engines.engine import Engine, Index, Logits
from tinyqa_ray.models import pretrained


class Counting(Engine):
    """An engine that computes nothing and counts its batches."""

    name, parameters, pad_id = "counting", 0, 0

    def __init__(self, lanes: int, max_batch_tokens: int) -> None:
        self.lanes, self.max_batch_tokens = lanes, max_batch_tokens
        self.batches: list[int] = []

    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        done = 0
        for batch in batches:
            done += 1
            nothing = np.zeros((len(batch), max(len(windows.input_ids[each]) for each in batch)), np.float32)
            yield batch, nothing, nothing
        self.batches.append(done)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said.say_once.cache_clear()
    return tmp_path / "tinyqa-ray/speeds"


@pytest.fixture
def config(tiny_bert: str) -> Any:
    return pretrained.load_config(tiny_bert)


@pytest.mark.parametrize("lanes", [1, 2, 64])
def test_every_core_of_every_engine_is_at_work(lanes: int, tiny_bert: str, config: Any) -> None:
    """With fewer batches than cores, an engine would look fast because its batches are small."""
    large, small = Counting(lanes, 1024), Counting(lanes, 512)
    found = speeds.timed(tiny_bert, "large", {"large": (large, config), "small": (small, config)})
    assert {*found} == {"large", "small"}
    assert max(large.batches) >= 2 * lanes
    assert max(small.batches) >= 2 * lanes


def test_slow_engines_are_timed_in_fewer_rounds_on_as_many_windows(
    tiny_bert: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "_MOST_S", 0.0)
    engine = Counting(2, 512)
    speeds.timed(tiny_bert, "a", {"a": (engine, config)})
    assert len(engine.batches) == 2, "a warm-up and a round"
    assert engine.batches[-1] >= 4


def test_speeds_belong_to_processor_cores_and_libraries(
    tiny_bert: str, has: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [speeds.key(tiny_bert, ["a", "b"]), speeds.key(tiny_bert, ["a"])]
    has("amx")  # no processor has that alone, so it is another one than this
    keys.append(speeds.key(tiny_bert, ["a", "b"]))
    monkeypatch.setattr(speeds, "usable_lanes", lambda: 77)
    keys.append(speeds.key(tiny_bert, ["a", "b"]))
    monkeypatch.setattr("tinyqa_ray.core.packages.versions", lambda *names: ["99"])
    keys.append(speeds.key(tiny_bert, ["a", "b"]))
    monkeypatch.setattr("tinyqa_ray.core.processor.name", lambda: "another")
    keys.append(speeds.key(tiny_bert, ["a", "b"]))
    assert len({*keys}) == 6
    assert speeds.key(tiny_bert, ["b", "a"]) == keys[-1]


def test_who_asks_second_takes_what_the_first_one_measured(
    tiny_bert: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    measured: list[float] = []

    def counted(*_: Any) -> dict[str, float]:
        measured.append(len(measured) + 1.0)
        return {"a": measured[-1]}

    def ask() -> dict[str, float]:
        both.wait()
        engines: dict[str, tuple[Engine, Any]] = {"a": (Counting(1, 512), config)}
        return speeds.kept_or_timed(tiny_bert, "a", engines, whole=True, again=False)

    monkeypatch.setattr(speeds, "timed", counted)
    with ThreadPoolExecutor(2) as pool:
        assert [each.result() for each in [pool.submit(ask), pool.submit(ask)]] == [{"a": 1.0}] * 2


def test_what_was_measured_without_some_is_not_kept(tiny_bert: str, config: Any, cache: Path) -> None:
    engines: dict[str, tuple[Engine, Any]] = {"a": (Counting(1, 512), config)}
    speeds.kept_or_timed(tiny_bert, "a", engines, whole=False, again=False)
    assert not list(cache.glob("*.json"))
    assert speeds.kept_speeds(tiny_bert, ["a"]) is None
    speeds.kept_or_timed(tiny_bert, "a", engines, whole=True, again=False)
    assert speeds.kept_speeds(tiny_bert, ["a"]) is not None
    (kept,) = cache.glob("*.json")
    kept.write_text(json.dumps({"b": 1.0}))
    assert speeds.kept_speeds(tiny_bert, ["a"]) is None, "it does not hold what is asked for"


@pytest.mark.parametrize("full", [True, False], ids=["the disk is full", "no folder"])
def test_speeds_that_cannot_be_kept_are_used_all_the_same(
    full: bool,
    tiny_bert: str,
    config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_room(path: str, value: Any) -> None:
        raise OSError(28, "no space left")

    if full:
        monkeypatch.setattr("tinyqa_ray.core.storage.write_json", no_room)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    engines: dict[str, tuple[Engine, Any]] = {"a": (Counting(1, 512), config)}
    assert {*speeds.kept_or_timed(tiny_bert, "a", engines, whole=True, again=False)} == {"a"}
    assert "how fast engines are cannot be kept" in caplog.text
