"""The configs of ``serve deploy``, checked without a cluster: Ray's own schema, and our own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import TypeAdapter
from ray.serve.schema import ServeDeploySchema

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.serve import app

ROOT = Path(__file__).parents[2]
SERVICE = yaml.safe_load((ROOT / "deploy" / "kuberay" / "rayservice.yaml").read_text())["spec"]
CONFIGS: dict[str, dict[str, Any]] = {
    "jobs/serve.yaml": yaml.safe_load((ROOT / "jobs" / "serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(SERVICE["serveConfigV2"]),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_config_is_one_that_ray_and_the_application_take(config: dict[str, Any]) -> None:
    (made,) = ServeDeploySchema.model_validate(config).applications
    assert made.import_path == f"{app.__name__}:{app.build.__name__}"
    served = TypeAdapter(ServeConfig).validate_python(made.args)
    assert served.min_replicas < served.max_replicas
    # The server keeps to its own limit, over all of a request; Ray's would be answered with 408.
    assert "request_timeout_s" not in config["http_options"]


def test_only_what_asks_for_a_key_listens_beyond_the_machine() -> None:
    assert CONFIGS["jobs/serve.yaml"]["http_options"]["host"] == "127.0.0.1"
    config = CONFIGS["rayservice.yaml"]
    assert config["http_options"]["host"] == "0.0.0.0"
    assert config["applications"][0]["args"]["api_key_file"].startswith("/etc/tinyqa/")


def test_there_is_a_pod_for_each_replica_and_one_for_a_new_version() -> None:
    (group,) = SERVICE["rayClusterConfig"]["workerGroupSpecs"]
    arguments = CONFIGS["rayservice.yaml"]["applications"][0]["args"]
    assert group["minReplicas"] == arguments["min_replicas"]
    assert group["maxReplicas"] == arguments["max_replicas"] + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "m", "gpu": True}, "argument 'gpu' is now called 'num_gpus'"),
        ({"model": "m", "replicas": 2}, "unknown argument 'replicas'; allowed are model, "),
        (
            {"model": "m", "limits": {"timeout": 2}},
            "unknown argument 'timeout'; allowed are max_body",
        ),
        ({"model": "m", "max_replicas": "many"}, "max_replicas: Input should be a valid integer"),
        ({"model": "m", "threshold": 2}, r"threshold is 2\.0; it must lie in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        app.build(arguments)


def test_without_a_model_it_serves_the_packages() -> None:
    assert app.build({})._bound_deployment.init_args[0] == ServeConfig(model="tinyqa-mini")


def test_new_version_starts_before_the_old_one_stops_and_that_one_may_finish() -> None:
    config = ServeConfig(model="m", threads=1)
    ingress = app.application(config)._bound_deployment
    (model,) = (each._bound_deployment for each in ingress.init_args if each != config)
    for deployment in (ingress, model):
        options = deployment._deployment_config
        assert options.max_surge_percent > 0
        # Beside the time limit, as long as proxies may take to hear of it.
        assert options.graceful_shutdown_timeout_s >= config.limits.timeout_s + 30
