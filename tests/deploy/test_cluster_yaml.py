"""cluster.yaml, checked as far as it can be without AWS: with Ray's own schema, and for what it promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonschema import ValidationError  # type: ignore[import-untyped]
from packaging.specifiers import SpecifierSet

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.recipes import published

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
README = (ROOT / "deploy" / "README.md").read_text()
PINS = dict(re.findall(r"^(ray|torch)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
SM_70_BUILD = "cu126"
"""The only build of torch 2.11 and later with kernels for the V100 (pytorch/pytorch#172352)."""
PLAIN = {
    *("cluster_name", "head_node_type", "container_name", "type"),
    *("provider", "auth", "docker", "run_options", "worker_run_options"),
    *("available_node_types", "head", "v100", "node_config", "file_mounts", "setup_commands"),
}
"""Keys that say themselves what they are for."""


def prepared(text: str = TEXT) -> dict[str, Any]:
    """The config as ``ray up`` sees it: with Ray's defaults, and accepted by Ray's schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return prepared()


def start_command(config: dict[str, Any], kind: str) -> str:
    """The one command that starts Ray on ``head`` or ``worker``."""
    (command,) = [line for line in config[f"{kind}_start_ray_commands"] if "ray start" in line]
    return str(command)


def node(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = config["available_node_types"][name]
    return found


def test_ray_refuses_what_its_schema_does_not_know() -> None:
    with pytest.raises(ValidationError, match="idle_timeout"):
        prepared(TEXT.replace("idle_timeout_minutes", "idle_timeout"))
    with pytest.raises(ValidationError, match="resources"):
        prepared(TEXT.replace("resources: {CPU: 8, GPU: 1}", ""))


def test_four_v100_nodes_come_on_demand_and_go_when_idle(config: dict[str, Any]) -> None:
    assert config["head_node_type"] == "head"
    assert set(config["available_node_types"]) == {"head", "v100"}
    workers = node(config, "v100")
    assert workers["node_config"]["InstanceType"] == "p3.2xlarge"  # one V100
    assert (workers["min_workers"], workers["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert workers["resources"] == {"CPU": 8, "GPU": 1}
    assert "InstanceMarketOptions" not in workers["node_config"]
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_cards_are_those_the_recipe_asks_for(config: dict[str, Any]) -> None:
    asked = {stage.workers for _, stage in published.tinyroberta().stages if isinstance(stage, DistillConfig)}
    assert asked == {node(config, "v100")["max_workers"]}


def test_head_lends_no_cpu(config: dict[str, Any]) -> None:
    assert "--num-cpus=0" in start_command(config, "head")
    # The autoscaler exports these, and Ray lets them win over the option.
    assert node(config, "head")["resources"] == {"CPU": 0, "GPU": 0}
    assert node(config, "head")["max_workers"] == 0


def test_spot_stanza_is_accepted_where_it_is_uncommented() -> None:
    config = prepared(TEXT.replace("# InstanceMarketOptions:", "InstanceMarketOptions:"))
    assert node(config, "v100")["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in node(config, "head")["node_config"]


def test_image_and_torch_are_pinned_and_know_the_v100(config: dict[str, Any]) -> None:
    assert config["docker"]["image"] == f"rayproject/ray:{PINS['ray']}-py311-{SM_70_BUILD}"
    torch, package = config["setup_commands"]
    pinned = f"{PINS['torch']}+{SM_70_BUILD}"
    index = f"https://download.pytorch.org/whl/{SM_70_BUILD}"
    assert torch == f"pip install torch=={pinned} --index-url {index}"
    # So the package's own installation, which follows, leaves that torch where it is.
    assert SpecifierSet(f"=={PINS['torch']}").contains(pinned)
    assert "torch" not in package


def test_package_is_installed_from_the_checkout_with_its_constraints(config: dict[str, Any]) -> None:
    (folder,) = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert config["setup_commands"][-1] == f"pip install -c {folder}/constraints.txt {folder}"
    assert config["rsync_exclude"] == [".git"]
    assert config["rsync_filter"] == [".gitignore"]
    assert {".venv/", "/runs/"} <= set((ROOT / ".gitignore").read_text().split())


def test_dashboard_stays_on_loopback(config: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in start_command(config, "head").split()
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start_command(config, "head").split()


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_ray_starts_with_a_token_only(config: dict[str, Any], kind: str) -> None:
    last = start_command(config, kind).split(";")[-1].split()
    environment = last[: last.index("ray")]
    assert environment == ["RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"]
    # Where Ray looks for it, on the laptop and on every node.
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_start_commands_use_options_that_ray_has(config: dict[str, Any], kind: str) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    used = {word.split("=")[0] for word in start_command(config, kind).split() if word.startswith("--")}
    assert used - known == set()


def test_none_of_rays_careless_defaults_is_left(config: dict[str, Any]) -> None:
    everything = yaml.safe_dump(config)
    assert "0.0.0.0" not in everything
    assert "ray-wheels" not in everything  # the default installs a nightly Ray
    assert "--privileged" not in everything
    assert "security_group" not in config["provider"]
    for kind in config["available_node_types"]:
        settings = node(config, kind)["node_config"]
        assert all(group.startswith("sg-") for group in settings["SecurityGroupIds"])
        assert settings["SecurityGroupIds"]
        assert settings["ImageId"].startswith("ami-")
        assert settings["MetadataOptions"]["HttpTokens"] == "required"


def test_runs_go_to_a_bucket_that_every_node_may_reach(config: dict[str, Any]) -> None:
    assert config["metadata"]["runs"].startswith("s3://")
    profiles = {node(config, kind)["node_config"]["IamInstanceProfile"]["Name"] for kind in ("head", "v100")}
    assert len(profiles) == 2  # workers may not start instances
    assert "AWS_SECRET_ACCESS_KEY" not in TEXT


def test_workers_fail_without_a_gpu_and_training_waits_for_them(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.constants import AUTOSCALER_NODE_START_WAIT_S

    assert config["docker"]["worker_run_options"] == ["--gpus all"]
    environment = dict(option.removeprefix("-e ").split("=") for option in config["docker"]["run_options"])
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert int(environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) > AUTOSCALER_NODE_START_WAIT_S
    assert config["idle_timeout_minutes"] * 60 >= AUTOSCALER_NODE_START_WAIT_S


def test_every_line_that_does_not_speak_for_itself_has_its_reason() -> None:
    assert unexplained(TEXT) == []
    assert unexplained(re.sub(r" *# Near the bucket.*\n", "", TEXT)) == ["region"]
    assert unexplained(re.sub(r" *# Without the NVIDIA runtime.*\n", "", TEXT)) == ["--gpus all"]


def test_readme_says_what_to_fill_in() -> None:
    places = set(re.findall(r"[\w:/.-]*REPLACE-?[\w/-]*", re.sub(r"(?m)#.*$", "", TEXT)))
    assert len(places) == 5
    assert [place for place in sorted(places) if f"`{place}`" not in README] == []


def test_image_of_the_readme_is_that_of_the_cluster(config: dict[str, Any]) -> None:
    assert f"FROM {config['docker']['image']}\n" in README
    torch = config["setup_commands"][0].removeprefix("pip install ")
    assert f"RUN pip install --no-cache-dir {torch}\n" in README


def unexplained(text: str) -> list[str]:
    """Keys and list items without a comment above them, or above what they are part of."""
    lines = text.splitlines()

    def commented(item: yaml.Node) -> bool:
        above: str = lines[item.start_mark.line - 1]
        return above.lstrip().startswith("#")

    def walk(found: yaml.Node, explained: bool) -> list[str]:
        result = []
        if isinstance(found, yaml.SequenceNode):
            for item in found.value:
                inner = explained or commented(item)
                result += [] if inner else [item.value]
                result += walk(item, inner)
        elif isinstance(found, yaml.MappingNode):
            for key, value in found.value:
                # An alias was explained where its anchor stands.
                alias = value.start_mark.line < key.start_mark.line
                inner = explained or alias or commented(key)
                result += [] if inner or key.value in PLAIN else [key.value]
                result += walk(value, inner)
        return result

    return walk(yaml.compose(text), False)
