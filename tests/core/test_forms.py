"""Forms of a model in the cache folder: made once, whatever is killed or runs at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core import bundled, forms
from tinyqa_ray.core.errors import InputError


class Export:
    """Stands for the process that exports."""

    commands: list[list[str]]
    returncode = 0
    said = ""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.commands.append(command)
        if not self.returncode:
            made = Path(command[command.index("--output") + 1])
            made.mkdir()
            (made / "model").write_text("whole")

    def communicate(self, timeout: float) -> tuple[None, str]:
        return None, self.said


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tinyqa-ray/forms"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(Export, "commands", commands, raising=False)
    monkeypatch.setattr(subprocess, "Popen", Export)
    return commands


def test_form_is_made_once_by_two_that_ask_at_once(cache: Path, exports: list[list[str]]) -> None:
    both = threading.Barrier(2)

    def ask() -> str:
        both.wait()
        return forms.made(bundled.MODEL, "onnx-int8")

    with ThreadPoolExecutor(2) as pool:
        one, two = (future.result() for future in [pool.submit(ask), pool.submit(ask)])
    assert one == two == forms.at_hand(bundled.MODEL, "onnx-int8")
    assert [command[:4] for command in exports] == [[sys.executable, "-m", "tinyqa_ray", "export"]]
    assert exports[0][6:12] == [
        *("--model", bundled.MODEL, "--format", "onnx", "--precision", "int8"),
    ]
    assert (Path(one) / "model").read_text() == "whole"
    assert {path.suffix for path in cache.iterdir()} <= {"", ".lock"}, "nothing else is left"


def test_what_a_killed_process_left_is_not_a_form(cache: Path, exports: list[list[str]]) -> None:
    folder = Path(forms.made(bundled.MODEL, "onnx-int8"))
    (folder / "model").write_text("half")
    folder.rename(f"{folder}.making")
    assert forms.at_hand(bundled.MODEL, "onnx-int8") is None
    assert (Path(forms.made(bundled.MODEL, "onnx-int8")) / "model").read_text() == "whole"
    assert not Path(f"{folder}.making").exists()


def test_form_that_cannot_be_made_says_why_and_is_not_tried_again(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Export, "returncode", 2)
    monkeypatch.setattr(Export, "said", "noise\ntinyqa: int8 loses 4.00 F1\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"^onnx-int8 of .* could not be made \(int8 loses 4\.00 F1\)"):
            forms.made(bundled.MODEL, "onnx-int8")
    assert len(exports) == 1
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_model_of_other_weights_or_settings_has_other_forms(tmp_path: Path, cache: Path) -> None:
    keys = []
    for weights, settings in (("1", "a"), ("2", "a"), ("1", "b")):
        (tmp_path / f"{weights}{settings}").mkdir()
        (tmp_path / f"{weights}{settings}/model.safetensors").write_text(weights)
        (tmp_path / f"{weights}{settings}/tinyqa.json").write_text(settings)
        keys.append(forms.key(str(tmp_path / f"{weights}{settings}")))
    assert len(set(keys)) == 3


def test_cache_folder_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"forms of models cannot be kept there .* set XDG_CACHE_HOME"):
        forms.made(bundled.MODEL, "onnx-int8")
