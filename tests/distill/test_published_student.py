from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tinyqa_ray.core import storage
from tinyqa_ray.distill.loop import MODEL, STATE, checkpoint_rows
from tinyqa_ray.distill.strategies import OPTIMIZER
from tinyqa_ray.distill.work import copy_model

ROWS = [{"step": 5, "steps": 10, "loss": 1.5}]
STUDENT = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"words"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Of a training whose checkpoints lie in a store."""
    url = f"memory://{uuid.uuid4().hex}/run/checkpoint_a"
    torch.save({"format": 2, "step": 5, "metrics": ROWS}, tmp_path / STATE)
    files = {STATE: (tmp_path / STATE).read_bytes(), OPTIMIZER: b"moments", "sealed-0.json": b"{}"}
    for name, content in {**files, **{f"{MODEL}/{name}": data for name, data in STUDENT.items()}}.items():
        storage.write_atomic(storage.join(url, name), content)
    return url


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files of stores that were read."""
    names: set[str] = set()
    opened = MemoryFileSystem._open

    def noted(store: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            names.add(path.rsplit("/", 1)[-1])
        return opened(store, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", noted)
    return names


def test_student_of_a_checkpoint_in_a_store_is_published_without_fetching_the_rest(
    checkpoint: str, read: set[str], tmp_path: Path
) -> None:
    """The optimiser's state is twice as large as the student."""
    copy_model(checkpoint, str(tmp_path / "model"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == STUDENT
    assert read == STUDENT.keys()


def test_rows_of_a_checkpoint_in_a_store_are_read_alone(checkpoint: str, read: set[str]) -> None:
    assert checkpoint_rows(checkpoint) == ROWS
    assert read == {STATE}
