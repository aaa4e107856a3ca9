from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tinyqa_ray.cli import summary
from tinyqa_ray.cli.console import native_noise_in_a_file
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.report import DistillReport


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_native_noise_is_kept_from_the_terminal_and_gone_at_the_end(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with native_noise_in_a_file() as log:
        os.write(2, b"from below\n")
        print("from Python", file=sys.stderr)
        assert log.read_bytes() == b"from below\n"
    assert capfd.readouterr().err == "from Python\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "noise", "left"),
    [(RuntimeError, b"why", [b"why"]), (RuntimeError, b"", []), (InputError, b"why", [])],
)
def test_what_fails_leaves_its_noise_behind_if_there_is_any(
    folder: Path, error: type[Exception], noise: bytes, left: list[bytes]
) -> None:
    def failing() -> None:
        with native_noise_in_a_file():
            os.write(2, noise)
            raise error("no")

    with pytest.raises(error):
        failing()
    assert [each.read_bytes() for each in folder.iterdir()] == left


@pytest.mark.parametrize(
    ("loss", "said"), [(0.25, "30 steps over 9 windows, loss 0.250"), (None, "30 steps over 9 windows")]
)
def test_training_is_summed_up_with_its_loss_if_it_has_one(loss: float | None, said: str) -> None:
    report = DistillReport(windows=9, steps=30, loss=loss, parameters=4567, model_bytes=1, published_step=30)
    assert summary.rows(report) == said
