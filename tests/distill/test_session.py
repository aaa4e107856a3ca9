from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import group
import pytest
import torch
import torch.distributed as dist
from peers.group_session import GroupSession
from torch import nn

from tinyqa_ray.core import storage
from tinyqa_ray.distill.checkpoints import newest_checkpoint
from tinyqa_ray.distill.session import DDP, LocalSession, RaySession, Write


class KilledError(Exception):
    pass


@pytest.fixture
def lonely_group(tmp_path: Path) -> Iterator[None]:
    """A torch.distributed group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=["local", "group"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> LocalSession:
    if request.param == "local":
        return LocalSession(tmp_path / "run")
    request.getfixturevalue("lonely_group")
    return GroupSession(tmp_path / "run")


def write(text: str) -> Write:
    def into(folder: Path) -> None:
        assert list(folder.iterdir()) == [], "the folder is not empty"
        (folder / "state.txt").write_text(text)

    return into


def keep(session: LocalSession, step: int, text: str = "") -> None:
    session.checkpoint(write(text or f"at {step}"), {"step": step, "steps": 1000})


def latest(session: LocalSession) -> str | None:
    with session.latest() as folder:
        return None if folder is None else (folder / "state.txt").read_text()


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_run_begins_without_a_checkpoint(session: LocalSession) -> None:
    assert latest(session) is None
    assert (session.rank, session.world_size, session.device) == (0, 1, torch.device("cpu"))
    assert session.local_size == 1


def test_one_whole_checkpoint_is_kept(session: LocalSession, tmp_path: Path) -> None:
    for step in (3, 20, 100):
        keep(session, step)
        assert names(tmp_path / "run") == [f"step-{step:09d}"]
        assert latest(session) == f"at {step}"


def test_death_while_writing_keeps_the_checkpoint_before(session: LocalSession, tmp_path: Path) -> None:
    keep(session, 3)

    def die(folder: Path) -> None:
        (folder / "state.txt").write_text("torn")
        raise KilledError

    with pytest.raises(KilledError):
        session.checkpoint(die, {"step": 6})
    assert names(tmp_path / "run") == ["step-000000003", "step-000000006.tmp"]
    assert latest(session) == "at 3"
    keep(session, 6)  # into an empty folder again
    assert names(tmp_path / "run") == ["step-000000006"]
    assert latest(session) == "at 6"


def test_leftovers_of_killed_runs_are_passed_over_and_cleared(session: LocalSession, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("step-000000003", "step-000000009", "step-000000012.tmp"):
        (run / name).mkdir(parents=True)
        (run / name / "state.txt").write_text(name)
    (run / "metrics.jsonl").write_text("kept")
    assert latest(session) == "step-000000009", "two are whole where the older was not deleted yet"
    keep(session, 15)
    assert names(run) == ["metrics.jsonl", "step-000000015"]


def test_same_step_kept_again_takes_the_place_of_the_first(session: LocalSession, tmp_path: Path) -> None:
    keep(session, 10, "once")
    keep(session, 10, "twice")
    assert names(tmp_path / "run") == ["step-000000010"]
    assert latest(session) == "twice"


def test_one_worker_is_wrapped_and_summed_plainly(session: LocalSession) -> None:
    module = nn.Linear(2, 2)
    assert session.wrap(module) is module
    assert session.total(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("late", [0, 1])
def test_two_workers_keep_one_checkpoint_of_both_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """Whichever is slower; workers are threads here, and training in processes is tested elsewhere."""
    run, door, me = tmp_path / "run", threading.Barrier(2, timeout=120), threading.local()
    monkeypatch.setattr(dist, "get_rank", lambda: me.rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", door.wait)

    def work(rank: int) -> list[list[str]]:
        me.rank = rank
        session = GroupSession(run)
        assert (session.rank, session.world_size) == (rank, 2)
        found = []

        def write_part(folder: Path) -> None:
            time.sleep(0.05 if rank == late else 0)
            (folder / f"rank-{rank}.txt").write_text("part")

        for step in (5, 10):
            time.sleep(0.05 if rank == late else 0)
            session.checkpoint(write_part, {"step": step})
            with session.latest() as folder:
                assert folder is not None
                assert folder.name == f"step-{step:09d}"
                found.append(names(folder))
            door.wait()
        return found

    with ThreadPoolExecutor(2) as workers:
        seen = list(workers.map(work, range(2)))
    assert seen == [[["rank-0.txt", "rank-1.txt"]] * 2] * 2
    assert names(run) == ["step-000000010"]


def test_gradients_lie_where_they_are_exchanged_and_buffers_are_not_sent(tmp_path: Path) -> None:
    """A copy of each gradient, and a broadcast in each forward, would be for nothing."""
    group.run(2, group.gradients_and_buffers, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found == [{"storages": 1, "seen": float(rank)} for rank in range(2)]


def test_worker_of_ray_train_has_the_same_data_parallelism(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    import ray.train.torch

    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 2, get_local_world_size=lambda: 2
    )
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(
        ray.train.torch, "prepare_model", lambda module, **options: given.update(options) or module
    )
    RaySession("run").wrap(nn.Linear(2, 2))
    assert given == {"parallel_strategy_kwargs": dict(DDP)}


@pytest.mark.parametrize(("started_by", "wanted"), [({}, 8), ({"LOCAL_WORLD_SIZE": "2"}, 2)])
def test_worker_knows_how_many_share_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started_by: dict[str, str], wanted: int
) -> None:
    """torchrun tells; else all are on it."""
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in started_by.items():
        monkeypatch.setenv(name, value)
    assert GroupSession(tmp_path).local_size == wanted


def test_worker_of_ray_train_knows_how_many_share_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(
        get_world_rank=lambda: 3, get_world_size=lambda: 8, get_local_world_size=lambda: 2
    )
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    session = RaySession("folder")
    assert (session.rank, session.world_size, session.local_size) == (3, 8, 2)


def test_worker_is_warned_once_of_a_node_that_ray_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    import ray.train.torch

    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1
    )
    notices = [None, "soon", "soon"]
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: notices.pop(0))
    session = RaySession("run")
    assert [session.is_warned() for _ in range(3)] == [False, True, False]


@pytest.mark.parametrize("is_local", [True, False])
def test_checkpoint_is_sent_to_a_store_with_our_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    import ray.train
    import ray.train.torch

    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1
    )
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray.train, "report", lambda metrics, **options: reported.append(options))
    monkeypatch.setattr(storage, "is_local", lambda path: is_local)
    session = RaySession(str(tmp_path / "run"))
    session.checkpoint(write("weights"), {"step": 5, "steps": 10})
    (options,) = reported
    if is_local:
        assert options["checkpoint_upload_fn"] is None, (
            "Ray copies it, and knows whether all nodes see the disk"
        )
        return
    (tmp_path / "run" / "first").mkdir(parents=True)
    kept = options["checkpoint_upload_fn"](options["checkpoint"], "first")
    assert kept.path == newest_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "first")
    assert (Path(kept.path) / "state.txt").read_text() == "weights"
