from __future__ import annotations

from pathlib import Path

import pytest

from tinyqa_ray.core import shared_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.shared_folder import check_shared

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
    with pytest.raises(
        InputError, match=r"out: is not seen by 1 of the cluster's 2 nodes \(10.0.0.2\).*s3://"
    ):
        check_shared(str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_that_all_nodes_share_passes_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probes = looked(monkeypatch, NODES, [])
    check_shared(str(tmp_path / "out"))
    assert len(probes) == 1
    assert not shared_folder._sees(probes[0])
    assert list((tmp_path / "out").iterdir()) == []


def test_store_and_single_node_are_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probes = looked(monkeypatch, NODES, ["a", "b"])
    check_shared("memory://out")
    looked(monkeypatch, {"a": "10.0.0.1"}, ["a"])
    check_shared(str(tmp_path / "out"))
    assert not probes
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_node_of_ray_tells_what_it_sees(tmp_path: Path) -> None:
    nodes = shared_folder._nodes()
    assert len(nodes) == 1
    (tmp_path / "there").write_text("")
    assert shared_folder._blind(str(tmp_path / "there"), nodes) == []
    assert shared_folder._blind(str(tmp_path / "missing"), nodes) == list(nodes.values())
