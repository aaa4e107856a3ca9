"""What passes between the driver of a training and its workers, without Ray."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import said, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import work
from tinyqa_ray.distill.failures import explained
from tinyqa_ray.distill.session import LocalSession

CONFIG = DistillConfig(data="windows", student="student", objective=("labels",))


class TwoWorkers(LocalSession):
    """One of two workers; the other one has warned of something else."""

    def gather(self, value: Any) -> list[Any]:
        return [value, ["the card of the other one is small"]]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(work, "RaySession", lambda folder: TwoWorkers(Path(folder)))
    names = ("failure_file", "checkpoints", "metrics_file", "dev_folder")
    return {"config": CONFIG, "probe": None, **{name: str(tmp_path / name) for name in names}}


def warned(*_: Any) -> None:
    logging.getLogger("tinyqa_ray.distill.precision").warning("trained in fp16: 1 of 2 workers lacks bf16")


def test_what_any_worker_warns_of_is_said_by_the_driver(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(work, "train", warned)
    returned = work.train_loop_per_worker(options)
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(work, "check", lambda config: 8)
    monkeypatch.setattr(work, "_fit", lambda *_: SimpleNamespace(return_value=returned))
    monkeypatch.setattr(work, "_finished", lambda *given: shown.append(given[-1]))
    monkeypatch.setattr(work, "connected", contextlib.nullcontext)
    monkeypatch.setattr(work, "probed", contextlib.nullcontext)
    said.say_once.cache_clear()
    caplog.clear()
    with stage_folder.stage(str(tmp_path / "out"), CONFIG) as stage:
        work.work(CONFIG, stage, None)
    assert caplog.messages == [
        "trained in fp16: 1 of 2 workers lacks bf16",
        "the card of the other one is small",
    ]
    assert sorted(shown[0]) == ["device", "precision", "workers"], "the model card does not show them"


def test_what_a_worker_warned_of_before_it_failed_is_said_by_the_driver(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*given: Any) -> None:
        warned(*given)
        raise InputError("the windows are of another student")

    monkeypatch.setattr(work, "train", fails)
    with stage_folder.stage(str(tmp_path / "out"), CONFIG) as stage:
        options["failure_file"] = stage.path(work.FAILURE)
        work.train_loop_per_worker(options)
        said.say_once.cache_clear()
        caplog.clear()
        assert work._failure(stage) == "the windows are of another student"
        assert caplog.messages == ["trained in fp16: 1 of 2 workers lacks bf16"]
        assert work._failure(stage) is None


def test_worker_on_a_node_that_does_not_see_the_output_trains_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(work, "train", lambda *given: trained.append(given))
    options["probe"] = str(tmp_path / "probe")
    with pytest.raises(InputError, match=r"is not seen by the node .*, whose workers would write") as refused:
        work.train_loop_per_worker(options)
    assert not trained
    assert explained(RuntimeError("ray"), CONFIG) is None
    assert explained(refused.value, CONFIG) == str(refused.value), "another try is not made"
    (tmp_path / "probe").touch()
    work.train_loop_per_worker(options)
    assert trained
