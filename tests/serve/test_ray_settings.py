"""That Ray still knows what is set of it, though it is none of Ray's public interface."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from ray._common.usage import usage_constants
from ray._private import ray_constants
from ray.serve._private import constants, haproxy, haproxy_templates

from tinyqa_ray.serve import ray_settings


@pytest.mark.parametrize("folder", [None, "/tmp/tinyqa-x"])
def test_ray_reads_every_variable_that_is_set_for_it(
    folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    known = "".join(map(inspect.getsource, (constants, ray_constants, usage_constants)))
    chosen = ray_settings.environment(folder, 30.0)
    assert [name for name in chosen if f'"{name}"' not in known] == []
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" in chosen


def test_cluster_keeps_its_own_settings_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_settings.haproxy_folder() is None
    assert not [name for name in ray_settings.environment(None, 30.0) if "SERVE" in name]


def test_haproxy_waits_longer_than_the_ingress_and_sends_again_what_got_no_reply() -> None:
    chosen = ray_settings.environment("/tmp/tinyqa-x", 29.5)
    assert chosen["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] == "35"
    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert "timeout server {{ config.timeout_server_s }}s" in template
    assert "retry-on {{ config.retry_on }}" in template
    assert int(chosen["RAY_SERVE_HAPROXY_RETRIES"]) > constants.RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT
    # Without one of its own, it takes the limit of an idle caller, an hour: HAProxy says no 408 to a request.
    assert haproxy.HAProxyConfig().timeout_http_request_s is None


def test_errors_of_haproxy_take_the_form_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    folder = tmp_path / "node"
    config = haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"), server_state_file=str(folder / "server-state")
    )
    haproxy.HAProxyApi(config, config_file_path=str(folder / "haproxy.cfg"))
    ray_settings.set_error_page(str(tmp_path))
    assert config.error_file_path is not None
    head, body = Path(config.error_file_path).read_bytes().split(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 503 Service Unavailable"
    assert b"Content-Length: %d" % len(body) in head.splitlines()
    assert json.loads(body).keys() == {"error", "error_type"}
    for status in (502, 503, 504):
        directive = f"errorfile {status} {{{{ config.error_file_path }}}}"
        assert directive in haproxy_templates.HAPROXY_CONFIG_TEMPLATE


def test_page_that_ray_keeps_elsewhere_is_missed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(AssertionError, match="0 pages of HAProxy's errors"):
        ray_settings.set_error_page(str(tmp_path))


def test_where_serves_own_proxy_is_wanted_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    ray_settings.set_error_page(str(tmp_path))
    assert [*tmp_path.iterdir()] == []
