from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import storage
from tinyqa_ray.distill.checkpoints import local_checkpoint, mend_list, newest_checkpoint, seal, sealed

SNAPSHOT = "checkpoint_manager_snapshot.json"


def write(run: Path, name: str, step: int, ranks: int = 1) -> Path:
    """A whole checkpoint in the folder of a run, as ``ranks`` workers upload it."""
    target = run / name
    for rank in range(ranks):
        part = run.parent / uuid.uuid4().hex
        (part / "zero").mkdir(parents=True)
        (part / "zero" / f"rank-{rank}.pt").write_bytes(b"state" * (rank + 1))
        if rank == 0:
            (part / "model").mkdir()
            (part / "model" / "model.safetensors").write_bytes(b"weights")
        seal(part, rank, ranks, {"step": step, "steps": 100, "loss": 1.0})
        for file in part.rglob("*"):
            if file.is_file():
                copy = target / file.relative_to(part)
                copy.parent.mkdir(parents=True, exist_ok=True)
                file.rename(copy)
    return target


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_run_that_kept_nothing_has_no_checkpoint(run: Path) -> None:
    assert newest_checkpoint(str(run)) is None
    run.mkdir()
    (run / SNAPSHOT).write_text("{}")
    (run / "checkpoint_empty").mkdir()
    assert newest_checkpoint(str(run)) is None


def test_furthest_step_wins_whatever_the_folders_are_called(run: Path) -> None:
    write(run, "checkpoint_c", 8)
    last = write(run, "checkpoint_a", 100)
    write(run, "checkpoint_b", 20)
    assert newest_checkpoint(str(run)) == str(last)


def test_of_two_checkpoints_of_a_step_every_call_finds_the_same(run: Path) -> None:
    write(run, "checkpoint_2026-01-01", 8)
    retried = write(run, "checkpoint_2026-01-02", 8)
    assert newest_checkpoint(str(run)) == newest_checkpoint(f"{run}/") == str(retried)


@pytest.mark.parametrize("file", ["model/model.safetensors", "zero/rank-0.pt", "zero/rank-1.pt"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "long"])
def test_upload_that_a_kill_cut_short_is_passed_over(run: Path, file: str, damage: str) -> None:
    whole = write(run, "checkpoint_a", 10, ranks=2)
    torn = write(run, "checkpoint_b", 20, ranks=2) / file
    content = torn.read_bytes()
    if damage == "missing":
        torn.unlink()
    else:
        torn.write_bytes({"short": content[:-1], "empty": b"", "long": content * 2}[damage])
    assert newest_checkpoint(str(run)) == str(whole)
    torn.write_bytes(content)
    assert newest_checkpoint(str(run)) == str(torn.parents[1])


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_checkpoint_that_a_rank_did_not_seal_is_passed_over(run: Path, rank: int, damage: str) -> None:
    whole = write(run, "checkpoint_a", 10, ranks=3)
    mark = write(run, "checkpoint_b", 20, ranks=3) / f"sealed-{rank}.json"
    if damage == "missing":
        mark.unlink()
    else:
        mark.write_bytes(b"" if damage == "empty" else mark.read_bytes()[:-9])
    assert newest_checkpoint(str(run)) == str(whole)


def test_files_that_nobody_sealed_do_no_harm(run: Path) -> None:
    whole = write(run, "checkpoint_a", 10)
    (whole / ".metadata.json").write_text("{}")
    assert newest_checkpoint(str(run)) == str(whole)


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 10_000))
def test_seal_cut_at_any_byte_is_no_seal(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    run = tmp_path_factory.mktemp("cut") / "run"
    mark = write(run, "checkpoint_a", 10) / "sealed-0.json"
    content = mark.read_bytes()
    mark.write_bytes(content[: cut % len(content)])
    assert newest_checkpoint(str(run)) is None


def test_seal_tells_the_step_without_the_weights(run: Path) -> None:
    found = sealed(write(run, "checkpoint_a", 40, ranks=2))
    assert (found["step"], found["steps"], found["world_size"]) == (40, 100, 2)


def upload(folder: Path) -> str:
    """A copy of a run's folder at a URL."""
    url = f"memory://{uuid.uuid4().hex}/run"
    for file in folder.rglob("*"):
        if file.is_file():
            storage.write_atomic(storage.join(url, str(file.relative_to(folder))), file.read_bytes())
    return url


def test_newest_checkpoint_is_found_and_read_at_a_url(run: Path) -> None:
    write(run, "checkpoint_a", 10, ranks=2)
    last = write(run, "checkpoint_b", 20, ranks=2)
    write(run, "checkpoint_c", 30, ranks=2).joinpath("zero", "rank-1.pt").unlink()
    url = upload(run)
    found = newest_checkpoint(url)
    assert found == f"{url}/{last.name}"
    with local_checkpoint(found) as folder:
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*.*") if path.is_file()}
        for name in ("zero/rank-0.pt", "zero/rank-1.pt", "model/model.safetensors"):
            assert files[name].read_bytes() == (last / name).read_bytes()
        assert sealed(folder)["step"] == 20


def test_local_checkpoint_is_read_where_it_lies(run: Path) -> None:
    kept = write(run, "checkpoint_a", 10)
    with local_checkpoint(str(kept)) as folder:
        assert folder == kept
    assert newest_checkpoint(str(run)) == str(kept)


LISTED = json.dumps({"checkpoint_results": [], "ray_version": "2"}).encode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LISTED, LISTED),
        (LISTED[:-5], None),
        (b"", None),
        (LISTED + LISTED[10:], None),
        (b"\xff\xfe\x00", None),
        (None, None),
    ],
    ids=["whole", "short", "empty", "overwritten", "no text", "absent"],
)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_torn_list_of_checkpoints_is_taken_away_and_a_whole_one_left(
    run: Path, where: str, before: bytes | None, after: bytes | None
) -> None:
    folder = str(run) if where == "local" else f"memory://{uuid.uuid4().hex}/run"
    file = storage.join(folder, SNAPSHOT)
    if before is not None:
        storage.write_atomic(file, before)
    mend_list(folder)
    assert (storage.read_bytes(file) if storage.kind(file) == "file" else None) == after


def test_mending_the_list_leaves_the_checkpoints(run: Path) -> None:
    kept = write(run, "checkpoint_a", 10)
    (run / SNAPSHOT).write_bytes(LISTED[:7])
    mend_list(str(run))
    assert newest_checkpoint(str(run)) == str(kept)
