"""Forms of a model in the cache folder: made once, whatever is killed or runs at the same time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core import bundled, forms, processor
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


@pytest.mark.parametrize(("saturates", "bits"), [(True, "7"), (False, "8")])
def test_int8_form_has_as_many_bits_as_the_processor_computes_rightly(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch, saturates: bool, bits: str
) -> None:
    monkeypatch.setattr(processor, "saturates_int8", lambda: saturates)
    forms.made(bundled.MODEL, "openvino-int8")
    assert exports[0][exports[0].index("--weight-bits") + 1] == bits
    monkeypatch.setattr(processor, "saturates_int8", lambda: not saturates)
    assert forms.at_hand(bundled.MODEL, "openvino-int8") is None, "the cache may be another machine's too"
    forms.made(bundled.MODEL, "openvino-fp32")
    assert "--weight-bits" not in exports[-1]


def test_form_for_other_processors_has_seven_bits_and_a_folder_of_its_own(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "saturates_int8", lambda: False)
    own, other = (forms.made(bundled.MODEL, "onnx-int8", portable=portable) for portable in (False, True))
    assert own != other
    assert [command[command.index("--weight-bits") + 1] for command in exports] == ["8", "7"]
    assert forms.at_hand(bundled.MODEL, "onnx-int8") == own


def test_form_is_made_anew_for_other_calibration_data(
    cache: Path, tmp_path: Path, exports: list[list[str]]
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text("1")
    second.write_text("2")
    folders = {forms.made("model", "onnx-int8", str(data)) for data in (first, first, second, second)}
    assert len(folders) == 1
    assert [command[command.index("--calibration") + 1] for command in exports] == [str(first), str(second)]
    assert forms.made("model", "onnx-int8") in folders, "without data, any will do"
    assert len(exports) == 2
    assert not list(cache.glob("*making*"))
    (Path(*folders) / "made.json").unlink()
    assert forms.made("model", "onnx-int8", str(second)) in folders
    assert len(exports) == 3, "it does not say what it was calibrated on"


@pytest.mark.parametrize(
    ("features", "there", "library"),
    [
        (("avx2", "avx512", "vnni"), {"openvino", "nncf", "onnxruntime", "onnx"}, "openvino"),
        (("avx2",), {"openvino", "nncf", "onnxruntime", "onnx"}, "onnx"),
        (("avx2",), {"openvino", "nncf"}, "openvino"),
        (("avx2", "avx512", "vnni"), {"openvino", "onnxruntime", "onnx"}, "onnx"),
        (("avx2",), {"onnxruntime"}, None),
    ],
)
def test_shipped_model_has_forms_of_the_faster_library_that_is_installed(
    features: tuple[str, ...], there: set[str], library: str | None, has: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(*features)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    assert forms.of_shipped() == (() if library is None else (f"{library}-int8", f"{library}-fp32"))


def test_what_a_server_needs_is_made_before_it_starts(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(forms.FIXED)
    monkeypatch.setattr(forms, "of_shipped", lambda: ("onnx-int8", "onnx-fp32"))
    forms.prepare("other", "auto")
    forms.prepare(bundled.MODEL, "fp32")
    assert not exports
    forms.prepare(bundled.MODEL, "auto")
    assert all(forms.at_hand(bundled.MODEL, name) for name in ("onnx-int8", "onnx-fp32"))
    forms.prepare(bundled.MODEL, "openvino-fp32")
    assert len(exports) == 3
    monkeypatch.setenv(forms.FIXED, "torch-fp32")
    forms.prepare(bundled.MODEL, "auto")
    assert len(exports) == 3


def test_form_that_a_server_could_do_without_does_not_stop_it(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(forms.FIXED)
    monkeypatch.setattr(Export, "returncode", 2)
    monkeypatch.setattr(Export, "said", "no room for a server\n")
    monkeypatch.setattr(forms, "of_shipped", lambda: ("onnx-int8",))
    forms.prepare(bundled.MODEL, "auto")
    assert "no room for a server" in caplog.text
    with pytest.raises(InputError, match="no room for a server"):
        forms.prepare(bundled.MODEL, "onnx-int8")


def test_what_a_killed_process_left_is_not_a_form(cache: Path, exports: list[list[str]]) -> None:
    folder = Path(forms.made(bundled.MODEL, "onnx-int8"))
    (folder / "model").write_text("half")
    folder.rename(f"{folder}.making-1")
    assert forms.at_hand(bundled.MODEL, "onnx-int8") is None
    assert (Path(forms.made(bundled.MODEL, "onnx-int8")) / "model").read_text() == "whole"
    assert not Path(f"{folder}.making-1").exists()


def test_export_that_outlives_its_killed_parent_writes_elsewhere(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forms.made(bundled.MODEL, "onnx-int8")
    monkeypatch.setattr("os.getpid", lambda: 77)
    forms.made(bundled.MODEL, "onnx-fp32")
    folders = [command[command.index("--output") + 1] for command in exports]
    assert folders[1].endswith("-onnx-fp32.making-77")
    assert not folders[0].endswith("-77")


def test_form_says_what_making_it_took(cache: Path, exports: list[list[str]]) -> None:
    folder = forms.made(bundled.MODEL, "onnx-int8")
    took = forms.took_s(folder)
    assert took is not None
    assert 0 <= took < 60
    (Path(folder) / "made.json").unlink()
    assert forms.took_s(folder) is None, "of an earlier version"


ASK = """
import subprocess, sys, time
from pathlib import Path
from tinyqa_ray.core import bundled, forms

real = subprocess.Popen
WORK = (
    "import sys, time; from pathlib import Path; made = Path(sys.argv[1]); made.mkdir();"
    "(made / 'model').write_text('half'); print('begun', flush=True); time.sleep(float(sys.argv[2]));"
    "(made / 'model').write_text('whole')"
)

def slow(command, **options):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    return real([sys.executable, "-c", WORK, command[command.index("--output") + 1], sys.argv[1]], **options)

subprocess.Popen = slow
folder = forms.made(bundled.MODEL, "onnx-int8")
print((Path(folder) / "model").read_text())
"""


def asking(seconds: float, log: Path) -> subprocess.Popen[str]:
    """A process that asks for the form, which takes so long to make."""
    command = [sys.executable, "-c", ASK, str(seconds), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_make_it_once_and_a_kill_is_made_good(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = asking(60, log)
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.making-*/model")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(cache.glob("*.making-*/model")), "it has begun"
    first.kill()
    first.communicate()
    assert forms.at_hand(bundled.MODEL, "onnx-int8") is None
    both = [asking(0.5, log), asking(0.5, log)]
    assert [each.communicate(timeout=60)[0].strip() for each in both] == ["whole", "whole"]
    assert log.read_text().split() == ["made", "made"], "one by the killed process, one by the two"


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
    monkeypatch.setattr(Export, "returncode", 0)
    with pytest.raises(InputError, match="tinyqa engines --model tinyqa-mini tries again"):
        forms.made(bundled.MODEL, "onnx-int8")
    assert Path(forms.made(bundled.MODEL, "onnx-int8", again=True)).is_dir()
    assert not list(cache.glob("*.refused"))


def test_what_was_refused_is_tried_again_with_other_libraries(
    cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Export, "returncode", 2)
    monkeypatch.setattr(Export, "said", "tinyqa: pip install onnx\n")
    with pytest.raises(InputError, match="pip install onnx"):
        forms.made(bundled.MODEL, "onnx-int8")
    monkeypatch.setattr(Export, "returncode", 0)
    monkeypatch.setattr("tinyqa_ray.core.packages.versions", lambda *names: [f"{name} 1" for name in names])
    assert Path(forms.made(bundled.MODEL, "onnx-int8")).is_dir()


@pytest.mark.parametrize("code", [-9, 75])
def test_export_that_was_killed_or_met_a_fault_is_tried_again(
    code: int, cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Export, "returncode", code)
    with pytest.raises(InputError, match="could not be made"):
        forms.made(bundled.MODEL, "onnx-int8")
    monkeypatch.setattr(Export, "returncode", 0)
    assert Path(forms.made(bundled.MODEL, "onnx-int8")).is_dir()


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
