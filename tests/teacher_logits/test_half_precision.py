from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import said
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import load
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import half_precision
from tinyqa_ray.teacher_logits.half_precision import FiniteTeacher, NotFiniteError, in_half_precision
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)


def softmax(row: Any) -> Any:
    row = np.exp(np.asarray(row, np.float64) - np.max(row))
    return row / row.sum()


def scaled(folder: str, to: Path, factor: float) -> str:
    """A model with the weights of its head times ``factor``."""
    model = pretrained.load_qa_model(folder)
    with torch.no_grad():
        model.qa_outputs.weight *= factor
    model.save_pretrained(to)
    pretrained.load_tokenizer(folder).save_pretrained(to)
    return str(to)


@pytest.fixture
def _fp16_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compute as in fp16 on a GPU, unless they are asked for fp32: what exceeds fp16 is inf."""
    original = load.load_engine

    def loaded(model: str, *, device: str = "auto", precision: str = "auto") -> Any:
        engine, config = original(model, device="cpu", precision="fp32")
        if precision != "fp32":
            forward = engine._forward  # type: ignore[attr-defined]
            half = lambda *inputs: forward(*inputs).half().float()  # noqa: E731
            monkeypatch.setattr(engine, "_forward", half)
        return engine, config

    monkeypatch.setattr(half_precision, "load_engine", loaded)
    said.say_once.cache_clear()


@pytest.fixture
def paragraphs(tiny_squad: str) -> Any:
    return squad.to_table(squad.read_squad(tiny_squad))


def written(model: str, data: str, paragraphs: Any) -> Any:
    config = TeacherLogitsConfig(data=data, tokenizer=model, teachers=(model,), window=WINDOW)
    return WindowWriter(config)(paragraphs)[0]


@pytest.mark.usefixtures("_fp16_teacher")
def test_logits_that_overflow_are_computed_in_fp32_and_keep_their_softmax(
    tiny_bert: str, tiny_squad: str, paragraphs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said.say_once.cache_clear()  # another test may have had it said
    plain = written(tiny_bert, tiny_squad, paragraphs)["start_logits"].to_pylist()
    assert not caplog.records
    highest = max(abs(value) for row in plain for value in row)
    large = scaled(tiny_bert, tmp_path / "large", 1.5 * half_precision.LARGEST / highest)
    rows = written(large, tiny_squad, paragraphs)
    starts = rows["start_logits"].to_pylist()
    assert all(np.isfinite(row).all() for row in starts)
    network = pretrained.load_qa_model(large)
    shifted = 0
    for row in rows.to_pylist():
        types = torch.tensor([row["token_type_ids"] or [0] * len(row["input_ids"])])
        with torch.inference_mode():
            output = network(input_ids=torch.tensor([row["input_ids"]]), token_type_ids=types)
        wanted = output.start_logits[0].numpy()
        if np.abs(wanted).max() > half_precision.LARGEST:
            shifted += 1
            np.testing.assert_allclose(softmax(row["start_logits"]), softmax(wanted), atol=0.02)
            assert max(row["start_logits"]) == 0
    assert shifted
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("computed again in fp32" in line for line in told) == 1


@pytest.mark.usefixtures("_fp16_teacher")
def test_teacher_that_fp32_does_not_help_is_refused_with_its_questions(
    tiny_bert: str, tiny_squad: str, paragraphs: Any, tmp_path: Path
) -> None:
    broken = scaled(tiny_bert, tmp_path / "broken", float("nan"))
    with pytest.raises(InputError, match=r"broken: the logits of \d+ of \d+ windows .*even in fp32.*\(quest"):
        written(broken, tiny_squad, paragraphs)


class Overflowing:
    """The engine of an export whose logits overflow."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def logits(self, windows: Any, max_batch_tokens: int | None = None) -> tuple[list[Any], list[Any]]:
        sides = [np.full(len(ids), np.inf, np.float32) for ids in windows.input_ids]
        return sides, list(sides)


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        ("int8", r"the export computes in int8 .* --precision fp32, or give the model itself"),
        ("bf16", r"the export computes in bf16 .* --precision fp32, or give the model itself"),
        ("fp32", r"even in fp32; its weights are broken"),
    ],
)
def test_export_that_overflows_is_not_called_broken_unless_it_is_in_fp32(
    precision: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_precision, "is_exported", lambda model: True)
    monkeypatch.setattr(half_precision, "load_engine", lambda *_, **__: (Overflowing(precision), None))
    teacher = FiniteTeacher("export", "cpu")
    windows = Tokens([np.array([1, 2, 3])], [np.array([0, 0, 0])])
    with pytest.raises(NotFiniteError, match=f"^export: the logits of 1 of 1 windows .*{sentence}"):
        teacher.logits(windows)


def test_two_threads_load_one_copy_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(model: str, *, device: str, precision: str = "auto") -> tuple[Any, None]:
        loaded.append(precision)
        time.sleep(0.05)
        return object(), None

    monkeypatch.setattr(half_precision, "load_engine", load)
    teacher = FiniteTeacher("model", "cpu")
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: teacher._in_fp32(), range(2))
    assert first is second
    assert loaded == ["auto", "fp32"]


def test_windows_that_fit_are_only_rounded() -> None:
    side = np.array([1.0, -65504.0, 65504.0, 3.3], np.float32)
    assert in_half_precision(side, np.array([2, 2])).tolist() == side.astype(np.float16).tolist()


def test_only_the_windows_beyond_are_shifted_and_all_their_differences_stay() -> None:
    side = np.array([5.0, 6.0, 70000.0, 69990.0, 1.0, -2.0], np.float32)
    found = in_half_precision(side, np.array([2, 2, 2]))
    assert found.tolist() == [5.0, 6.0, 0.0, -10.0, 1.0, -2.0]
    assert side[2] == 70000.0, "the caller's array is left alone"


def test_range_that_is_too_wide_is_clamped_where_the_softmax_is_zero() -> None:
    side = np.array([100000.0, 99999.0, -100000.0], np.float32)
    found = in_half_precision(side, np.array([3]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(softmax(found), softmax(side))
