from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.push import push
from tinyqa_ray.models.settings import ModelSettings, write_settings

FITTED = ModelSettings(no_answer_threshold=0.25, fitted_on="sha256 abc")


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.hub() as made:
        yield made


@pytest.fixture
def model(tiny_bert: str, tmp_path: Path) -> Path:
    """A folder with a model, its card, and what does not belong on the hub."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "student"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Student\n")
    for name in (".env", "optimizer.pt", "training_args.bin", "_SUCCESS.json"):
        (folder / name).write_text("private")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "model.safetensors").write_text("private")
    return folder


def pushed(
    hub: hub_server.Hub,
    home: Path,
    model: Path,
    *options: str,
    token: str = hub_server.TOKEN,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    words = ["-m", "tinyqa_ray", "push", "--model", str(model), *options]
    return hub.run(home, *words, **{"HF_TOKEN": token, **environment})


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused push."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tinyqa: ")]
    return line


def test_folder_is_uploaded_with_card_and_settings_and_nothing_else(
    hub: hub_server.Hub, model: Path, tmp_path: Path
) -> None:
    write_settings(str(tmp_path / "evaluation"), FITTED)
    options = ("--settings", str(tmp_path / "evaluation"), "--private", "--message", "A first student")
    done = pushed(hub, tmp_path / "home", model, "--repo", "tester/student", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/tester/student\n"
    there = hub.repositories["tester/student"]
    assert set(there.files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tinyqa.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert ModelSettings(**json.loads(there.files["tinyqa.json"])) == FITTED
    for name in there.files.keys() - {"tinyqa.json"}:
        assert there.files[name] == (model / name).read_bytes()
    assert there.private
    assert there.messages == ["A first student"]
    assert not (model / "tinyqa.json").exists(), "the model's folder is an input"


def test_second_push_replaces_weights_and_settings_and_leaves_the_rest(
    hub: hub_server.Hub, model: Path, tmp_path: Path
) -> None:
    write_settings(str(model), FITTED)
    there = hub.add("tester/student", model)
    there.files = {**there.files, "model-00001-of-00002.safetensors": b"old", "picture.png": b"kept"}
    (model / "tinyqa.json").unlink()
    (model / "README.md").write_text("# Better\n")
    done = pushed(hub, tmp_path / "home", model, "--repo", "tester/student")
    assert done.returncode == 0, done.stderr
    assert not there.private
    assert there.files["README.md"] == b"# Better\n"
    assert there.files["picture.png"] == b"kept"
    assert "tinyqa.json" not in there.files
    assert "model-00001-of-00002.safetensors" not in there.files


def test_push_that_the_hub_refuses_is_one_line(hub: hub_server.Hub, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    unknown = refused(pushed(hub, home, model, "--repo", "tester/student", token="hf_wrong"))
    assert "tester/student: could not be uploaded (" in unknown
    assert "hf auth login" in unknown
    foreign = refused(pushed(hub, home, model, "--repo", "another/student"))
    assert "hf auth login" in foreign
    lost = refused(pushed(hub, home, model, "--repo", "tester/student", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "the hub cannot be reached" in lost
    offline = refused(pushed(hub, home, model, "--repo", "tester/student", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in offline
    assert hub.repositories == {}


def test_private_push_onto_a_public_repository_is_refused(
    hub: hub_server.Hub, model: Path, tmp_path: Path
) -> None:
    there = hub.add("tester/student", tmp_path / "student")
    there.files.clear()
    line = refused(pushed(hub, tmp_path / "home", model, "--repo", "tester/student", "--private"))
    assert "tester/student: is there already and public" in line
    assert there.files == {}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", r"student: has no config\.json"),
        ("model.safetensors", "student: holds only training_args.bin"),
        ("tokenizer*", "student: has no tokenizer"),
    ],
)
def test_folder_that_is_no_model_is_refused(model: Path, missing: str, said: str) -> None:
    for path in model.glob(missing):
        path.unlink()
    with pytest.raises(InputError, match=rf"{said}[^\n]*$"):
        push(str(model), "tester/student")


def test_what_is_no_folder_or_no_id_is_refused(model: Path, tmp_path: Path) -> None:
    for name in ("tester/other", str(tmp_path / "absent")):
        with pytest.raises(InputError, match=rf"^{name}: no such model folder$"):
            push(name, "tester/student")
    with pytest.raises(InputError, match=r"^a/b/c: could not be uploaded \(Repo id must [^\n]*$"):
        push(str(model), "a/b/c")


def test_broken_settings_are_refused_before_anything_is_asked(model: Path) -> None:
    (model / "tinyqa.json").write_text('{"threshold": 1}')
    with pytest.raises(InputError, match=r"tinyqa\.json: is not a settings file of this version"):
        push(str(model), "tester/student")
