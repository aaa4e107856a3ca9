from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinyqa_ray.core import shared_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.shared_folder import check_seen, probed

NODES = {"a": "10.0.0.1", "b": "10.0.0.2"}


def looked(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, str], blind: list[str]) -> list[str]:
    """Pretend a cluster of ``nodes``, of which some see nothing; returns the probes that are looked for."""
    probes: list[str] = []

    def look(probe: str, asked: dict[str, str]) -> list[str]:
        assert shared_folder._sees(probe)
        probes.append(probe)
        return [address for node, address in asked.items() if node in blind]

    monkeypatch.setattr(shared_folder, "_nodes", lambda: nodes)
    monkeypatch.setattr(shared_folder, "_blind", look)
    return probes


def test_local_output_that_a_node_does_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked(monkeypatch, NODES, ["b"])
    with (
        pytest.raises(
            InputError, match=r"out: is not seen by 1 of the cluster's 2 nodes \(10.0.0.2\).*s3://"
        ),
        probed(str(tmp_path / "out")),
    ):
        pytest.fail("the pass began")
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_all_nodes_share_passes_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probes = looked(monkeypatch, NODES, [])
    with probed(str(tmp_path / "out")) as probe:
        assert probes == [probe]
        check_seen(probe)
    assert not shared_folder._sees(probes[0])
    assert list((tmp_path / "out").iterdir()) == []


def test_node_that_joins_later_and_does_not_see_the_folder_is_refused_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probes = looked(monkeypatch, {"a": "10.0.0.1"}, [])
    with probed(str(tmp_path / "out")) as probe:
        assert not probes, "one node need not be asked"
        assert probe is not None
        check_seen(probe)
        Path(probe).unlink()  # as on another disk
        with pytest.raises(
            InputError, match=r"out: is not seen by the node \d+\.\d+.*own disks.*s3://"
        ) as refused:
            check_seen(probe)
        assert "\n" not in str(refused.value)


def test_store_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = looked(monkeypatch, NODES, ["a", "b"])
    with probed("memory://out") as probe:
        assert probe is None
        check_seen(probe)
    assert not probes


def test_drivers_node_counts_without_cpus_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a cluster for hire has no CPU for workers, but it reads what they write."""
    import ray

    def node(name: str, cpus: float, alive: bool = True) -> dict[str, Any]:
        resources = {"CPU": cpus} if cpus else {}
        return {"NodeID": name, "Alive": alive, "Resources": resources, "NodeManagerAddress": f"at-{name}"}

    found = [node("head", 0), node("worker", 8), node("idle", 0), node("lost", 8, alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    own = SimpleNamespace(get_node_id=lambda: "head")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: own)
    assert shared_folder._nodes() == {"head": "at-head", "worker": "at-worker"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_node_of_ray_tells_what_it_sees(tmp_path: Path) -> None:
    nodes = shared_folder._nodes()
    assert len(nodes) == 1
    (tmp_path / "there").write_text("")
    assert shared_folder._blind(str(tmp_path / "there"), nodes) == []
    assert shared_folder._blind(str(tmp_path / "missing"), nodes) == list(nodes.values())
