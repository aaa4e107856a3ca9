from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest

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
    online = ran(hub, tmp_path, SETTINGS, fitted, "tester/plain")
    assert online == {"said": [0.25, 0.5], "heavy": []}
    for lost in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        offline = ran(hub, tmp_path, SETTINGS, fitted, "tester/plain", "tester/never-seen", **lost)
        assert offline["said"] == [0.25, 0.5, 0.5], lost


def test_settings_that_are_unknown_offline_are_not_taken_for_the_defaults(
    hub: hub_server.Hub, fitted: str, tmp_path: Path
) -> None:
    fetch = "import sys, huggingface_hub as hub; print(len(hub.hf_hub_download(sys.argv[1], 'config.json')))"
    ran(hub, tmp_path, fetch, fitted)
    (said,) = ran(hub, tmp_path, SETTINGS, fitted, HF_HUB_OFFLINE="1")["said"]
    assert said.startswith("tester/fitted: the hub cannot be reached, and its cache does not tell")
    assert "give --settings" in said
    assert "\n" not in said


def test_settings_of_an_id_that_the_hub_does_not_have_or_show_are_refused(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    hub.add("tester/asks", tiny_bert, gated=True)
    absent, gated = ran(hub, tmp_path, SETTINGS, "tester/absent", "tester/asks")["said"]
    assert absent.startswith("tester/absent: tinyqa.json could not be read (the hub has no such model, or")
    assert "terms" in gated
    assert "hf auth login" in gated
