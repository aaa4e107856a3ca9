from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch

from tinyqa_ray.core import contents, stage_folder
from tinyqa_ray.models import hub as hub_module
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, write_settings

FITTED = ModelSettings(no_answer_threshold=0.25, fitted_on="sha256 abc", temperature=2.0)
NOWHERE = "http://127.0.0.1:9"
"""An address at which nobody listens."""
SETTINGS = """\
import json, sys
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import read_settings
said = []
for name in sys.argv[1:]:
    try:
        said.append(read_settings(name).no_answer_threshold)
    except InputError as error:
        said.append(str(error))
heavy = [name for name in ("torch", "ray", "transformers", "datasets") if name in sys.modules]
print(json.dumps({"said": said, "heavy": heavy}))
"""
CONFIGS = """\
import sys, huggingface_hub
print([len(huggingface_hub.hf_hub_download(name, "config.json")) for name in sys.argv[1:]])
"""
LOADS = """\
import json, sys
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained
loads = {load.__name__: load for load in
         (pretrained.load_config, pretrained.load_tokenizer, pretrained.load_qa_model)}
said = {}
for name in sys.argv[1:]:
    for kind, load in loads.items():
        try:
            load(name)
            said[f"{name} {kind}"] = "loaded"
        except InputError as error:
            said[f"{name} {kind}"] = str(error)
print(json.dumps(said))
"""
READS = """\
import json, sys
from tinyqa_ray import Reader
reader = Reader.from_pretrained(sys.argv[1])
first = next(iter(reader.engine.model.parameters())).sum().item()
print(json.dumps([first, reader.settings.no_answer_threshold, reader.settings.temperature]))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.hub() as made:
        yield made


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, hub: hub_server.Hub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Id of a model with settings."""
    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("fitted") / "model")
    write_settings(str(folder), FITTED)
    hub.add("tester/fitted", folder)
    return "tester/fitted"


def ran(hub: hub_server.Hub, home: Path, script: str, *names: str, **environment: str) -> Any:
    """What a script prints as JSON, its last line."""
    done = hub.run(home, "-c", script, *names, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_are_read_by_id_and_stay_known_offline(
    hub: hub_server.Hub, fitted: str, tiny_bert: str, tmp_path: Path
) -> None:
    hub.add("tester/plain", tiny_bert)
    ran(hub, tmp_path, CONFIGS, fitted, "tester/plain")
    online = ran(hub, tmp_path, SETTINGS, fitted, "tester/plain")
    assert online == {"said": [0.25, 0.5], "heavy": []}
    for lost in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        offline = ran(hub, tmp_path, SETTINGS, fitted, "tester/plain", "tester/never-seen", **lost)
        assert offline["said"] == [0.25, 0.5, 0.5], lost


def test_defaults_for_settings_that_are_unknown_offline_are_announced(
    hub: hub_server.Hub, fitted: str, tmp_path: Path
) -> None:
    ran(hub, tmp_path, CONFIGS, fitted)
    done = hub.run(tmp_path, "-c", SETTINGS, fitted, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout.splitlines()[-1])["said"] == [0.5]
    assert "tester/fitted: the hub cannot be reached, and its cache does not tell" in done.stderr
    assert "give --settings" in done.stderr


def test_settings_of_an_id_that_the_hub_does_not_have_or_show_are_refused(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    hub.add("tester/asks", tiny_bert, gated=True)
    absent, gated = ran(hub, tmp_path, SETTINGS, "tester/absent", "tester/asks")["said"]
    assert absent.startswith("tester/absent: tinyqa.json could not be read (the hub has no such model, or")
    assert "terms" in gated
    assert "hf auth login" in gated


def test_model_is_read_by_id_with_its_settings(
    hub: hub_server.Hub, fitted: str, tiny_bert: str, tmp_path: Path
) -> None:
    first, threshold, temperature = ran(hub, tmp_path, READS, fitted)
    expected = next(iter(pretrained.load_qa_model(tiny_bert).parameters())).sum().item()
    assert first == pytest.approx(expected)
    assert (threshold, temperature) == (FITTED.no_answer_threshold, FITTED.temperature)
    # What was read once is read again without the network.
    assert ran(hub, tmp_path, READS, fitted, HF_HUB_OFFLINE="1") == [first, threshold, temperature]


def test_models_that_cannot_be_read_are_refused_with_what_to_do(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    hub.add("tester/gated", tiny_bert, gated=True)
    hub.add("tester/private", tiny_bert, private=True)
    pickled = hub.add("tester/pickled", tiny_bert)
    pickled.files["pytorch_model.bin"] = pickled.files.pop("model.safetensors")
    said = ran(hub, tmp_path, LOADS, "tester/gated", "tester/private", "tester/absent", "tester/pickled")
    for kind in ("load_config", "load_tokenizer", "load_qa_model"):
        for name in ("tester/gated", "tester/private", "tester/absent"):
            line = said[f"{name} {kind}"]
            assert line.startswith(f"{name}: no "), line
            assert "hf auth login" in line
            assert "\n" not in line
        assert "terms" in said[f"tester/gated {kind}"]
        assert "no such model, or it is private" in said[f"tester/private {kind}"]
    assert said["tester/pickled load_tokenizer"] == "loaded"
    assert said["tester/pickled load_qa_model"] == (
        "tester/pickled: holds only pytorch_model.bin; weights are read from safetensors only, and "
        "tinyqa convert --model tester/pickled --output FOLDER makes them"
    )
    assert not any("pytorch_model.bin" in each for each in hub.requests), "pickles are not fetched"


def test_busy_hub_is_asked_again_and_never_taken_for_a_model_without_settings(
    hub: hub_server.Hub, fitted: str, tmp_path: Path
) -> None:
    # The hub's client asks six times by itself.
    hub.faults[:] = [503] * 20
    said = ran(hub, tmp_path / "patient", SETTINGS, fitted)["said"]
    assert said == [FITTED.no_answer_threshold]
    hub.faults[:] = [503] * 100
    try:
        done = hub.run(tmp_path / "hasty", "-c", SETTINGS, fitted, TINYQA_STORE_PATIENCE_S="0")
    finally:
        hub.faults.clear()
    assert done.stderr.splitlines()[-1].startswith(
        f"tinyqa_ray.core.errors.StoreError: {fitted}: the store did not serve"
    )


def test_model_is_read_at_the_commit_that_its_id_names(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    model = pretrained.load_qa_model(tiny_bert)
    changed = shutil.copytree(tiny_bert, tmp_path / "changed")
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    model.save_pretrained(changed)
    first = hub.add("tester/moves", tiny_bert)
    commit = first.keep()
    first.files = hub.add("tester/changed", changed).files
    hub.repositories["tester/moves"] = first
    now, _, _ = ran(hub, tmp_path / "now", READS, "tester/moves")
    then, _, _ = ran(hub, tmp_path / "then", READS, f"tester/moves@{commit}")
    assert then == pytest.approx(next(iter(pretrained.load_qa_model(tiny_bert).parameters())).sum().item())
    assert now > then + 1


def test_service_that_converts_pickles_is_never_asked(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    bare = hub.add("tester/bare", tiny_bert)
    del bare.files["model.safetensors"]
    pickled = hub.add("tester/old", tiny_bert)
    pickled.files["pytorch_model.bin"] = pickled.files.pop("model.safetensors")
    hub.requests.clear()
    said = ran(hub, tmp_path, LOADS, "tester/bare", "tester/old")
    assert said["tester/bare load_qa_model"].startswith("tester/bare: holds no weights")
    assert "holds only pytorch_model.bin" in said["tester/old load_qa_model"]
    assert not [each for each in hub.requests if "discussions" in each or "refs/pr" in each]


@dataclass(frozen=True, kw_only=True, slots=True)
class SomeConfig:
    model: str
    data: str


def test_run_keeps_the_commit_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = {"tester/model": "a" * 40, "rajpurkar/squad_v2:train": "b" * 40}
    monkeypatch.setattr(hub_module, "commit", lambda name, *, is_data=False: main[name])
    config = SomeConfig(model="tester/model", data="rajpurkar/squad_v2:train")
    out = str(tmp_path / "out")
    with stage_folder.stage(out, config, inputs=("model", "data")) as stage:
        pinned = hub_module.pinned(config, stage, "model", data=("data",))
    assert pinned.model == "tester/model@" + "a" * 40
    assert pinned.data == f"rajpurkar/squad_v2@{'b' * 40}:train"
    main["tester/model"] = "c" * 40
    with stage_folder.stage(out, config, inputs=("model", "data")) as stage:
        again = hub_module.pinned(config, stage, "model", data=("data",))
        stage.publish(Counted(rows=1))
    assert again == pinned
    published = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert published["commits"]["tester/model"] == "a" * 40
    other = str(tmp_path / "other")
    with stage_folder.stage(other, config, inputs=("model", "data")) as stage:
        hub_module.pinned(config, stage, "model", data=("data",))
        stage.publish(Counted(rows=1))
    assert contents.identity(out) != contents.identity(other)


def test_name_at_its_commit_is_that_of_the_hub_alone(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"tester/model": "a" * 40, "tester/model@v1": "b" * 40}
    monkeypatch.setattr(hub_module, "commit", lambda name, *, is_data=False: known.get(name))
    assert hub_module.at_commit("tester/model") == f"tester/model@{'a' * 40}"
    assert hub_module.at_commit("tester/model@v1") == f"tester/model@{'b' * 40}"
    for name in ("tester/unknown", tiny_bert, "tinyqa-mini", "tinyqa-mini-int8"):
        assert hub_module.at_commit(name) == name


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    rows: int


def test_names_that_are_no_ids_or_that_nobody_knows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "commit", lambda name, *, is_data=False: None)
    for model in ("tinyqa-mini", str(tmp_path), "s3://bucket/model", "nobody/knows"):
        config = SomeConfig(model=model, data="train.json")
        with stage_folder.stage(str(tmp_path / "out" / model[-5:]), config) as stage:
            assert hub_module.pinned(config, stage, "model", data=("data",)) == config
            assert not stage.commits


def test_hub_that_cannot_be_reached_is_named_in_one_line(hub: hub_server.Hub, tmp_path: Path) -> None:
    said = ran(hub, tmp_path, LOADS, "tester/model", HF_ENDPOINT=NOWHERE)
    assert len(said) == 3
    for line in said.values():
        assert line.startswith("tester/model: no ")
        assert line.endswith("(the hub cannot be reached, and its cache lacks it; check the network)")
