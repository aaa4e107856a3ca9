"""deploy/kuberay, checked without Kubernetes: its fields are KubeRay's, and its promises are kept."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from tinyqa_ray.cli import arguments, recipe_arguments
from tinyqa_ray.configs import AnswerConfig, DistillConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
FIELDS = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
CLUSTERS = [name for name in MANIFESTS if name.startswith("ray")]
JOBS = [name for name in MANIFESTS if name.startswith("rayjob-")]
PINNED_RAY = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


def refused(manifest: Any) -> bool:
    return not jsonschema.Draft7Validator(FIELDS).is_valid(manifest)


def cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = MANIFESTS[name]["spec"]
    inner: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return inner


def pods(name: str) -> list[dict[str, Any]]:
    """Pod specs, the head's first."""
    groups = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def entrypoint(name: str) -> list[str]:
    """Words of a job's command."""
    return shlex.split(MANIFESTS[name]["spec"]["entrypoint"])


def test_there_is_a_cluster_that_stays_a_job_each_to_distill_and_to_answer_and_a_service() -> None:
    assert CLUSTERS == ["raycluster", "rayjob-answer", "rayjob-distill", "rayservice"]
    assert [MANIFESTS[name]["kind"] for name in CLUSTERS] == ["RayCluster", "RayJob", "RayJob", "RayService"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_only_fields_that_kuberay_knows(name: str) -> None:
    jsonschema.validate(MANIFESTS[name], FIELDS)


def test_schema_refuses_misspelt_and_mistyped_fields() -> None:
    for path, key, value in [
        (("spec",), "authOption", {"mode": "token"}),
        (("spec", "authOptions"), "mode", "tokens"),
        (("spec", "autoscalerOptions"), "idleTimeoutSeconds", "900"),
        (("spec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("spec", "workerGroupSpecs", 0), "max_replicas", 4),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0), "gpus", 1),
    ]:
        manifest = copy.deepcopy(MANIFESTS["raycluster"])
        assert not refused(manifest)
        inner = manifest
        for step in path:
            inner = inner[step]
        inner[key] = value
        assert refused(manifest), f"{path} {key}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_answers_without_the_token(name: str) -> None:
    assert cluster(name)["authOptions"] == {"mode": "token"}
    assert cluster(name)["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"


@pytest.mark.parametrize("name", CLUSTERS)
def test_image_is_pinned_to_the_ray_of_the_constraints(name: str) -> None:
    images = {container["image"] for pod in pods(name) for container in pod["containers"]}
    assert images == {f"REPLACE-registry/tinyqa-ray:{PINNED_RAY}-py311-cu126"}
    assert cluster(name)["rayVersion"] == PINNED_RAY
    assert f"docker build -t {images.pop()} " in (ROOT / "deploy" / "README.md").read_text()


@pytest.mark.parametrize("name", CLUSTERS)
def test_four_workers_have_a_gpu_each_and_the_head_lends_no_cpu(name: str) -> None:
    assert cluster(name)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster(name)["workerGroupSpecs"]
    assert group["maxReplicas"] == (5 if name == "rayservice" else 4)  # one for a new version
    head, worker = (pod["containers"][0]["resources"] for pod in pods(name))
    assert worker["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["limits"]
    assert all(resources["requests"] == resources["limits"] for resources in (head, worker))


def test_gpus_are_held_only_while_there_is_a_job() -> None:
    stays = cluster("raycluster")
    assert stays["enableInTreeAutoscaling"] is True
    assert stays["workerGroupSpecs"][0]["minReplicas"] == 0
    for name in JOBS:
        assert MANIFESTS[name]["spec"]["shutdownAfterJobFinishes"] is True
        assert cluster(name)["workerGroupSpecs"][0]["minReplicas"] == 4


@pytest.mark.parametrize("name", CLUSTERS)
def test_containers_have_no_privileges(name: str) -> None:
    for pod in pods(name):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all("hostPath" not in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert not confined.get("privileged", False)
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", CLUSTERS)
def test_head_and_workers_share_one_folder(name: str) -> None:
    claim = MANIFESTS["storage"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(name):
        (volume,) = (each for each in pod["volumes"] if "persistentVolumeClaim" in each)
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in pod["containers"]:
            (mount,) = (each for each in container["volumeMounts"] if each["name"] == volume["name"])
            assert mount["mountPath"] == "/mnt/runs"


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_usage_statistics_and_time_for_gpu_nodes_to_come(name: str) -> None:
    for pod in pods(name):
        environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        if name != "rayservice":  # which trains nothing
            assert int(environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) > 600


@pytest.mark.parametrize("name", JOBS)
def test_job_runs_a_script_of_the_image_and_is_tried_again(name: str) -> None:
    python, script, *arguments = entrypoint(name)
    assert python == "python"
    relative = script.removeprefix("/home/ray/tinyqa_ray/")
    assert relative != script
    assert (ROOT / relative).is_file()
    assert all(word.startswith("/mnt/runs/") for word in arguments if "/" in word)
    # Jobs continue where they were.
    assert MANIFESTS[name]["spec"]["backoffLimit"] > 0


def test_distilling_is_a_command_line_that_the_recipe_takes() -> None:
    call = recipe_arguments.recipe_call(entrypoint("rayjob-distill")[2:], "distill.py")
    assert call.recipe.name == "tinyroberta"
    assert call.stages == tuple(name for name, _ in call.recipe.stages)
    workers = {stage.workers for _, stage in call.recipe.stages if isinstance(stage, DistillConfig)}
    assert workers == {cluster("rayjob-distill")["workerGroupSpecs"][0]["replicas"]}


def test_answering_is_a_command_line_that_the_job_takes_with_the_model_just_made() -> None:
    def asked(config: AnswerConfig, output: str) -> AnswerConfig:
        return config

    config = arguments.parsed(asked, entrypoint("rayjob-answer")[2:], "answer.py")
    assert config.actors == cluster("rayjob-answer")["workerGroupSpecs"][0]["replicas"]
    assert config.num_gpus == 1
    made = recipe_arguments.recipe_call(entrypoint("rayjob-distill")[2:], "distill.py")
    assert config.model == f"{made.output}/student/model"
    assert "student" in made.stages
