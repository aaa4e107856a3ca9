from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.failures import as_long_as_it_advances, causes, explained
from tinyqa_ray.distill.precision import NotFiniteError

CONFIG = DistillConfig(
    data="-", student="-", objective=("labels",), batch_size=96, workers=4, gradient_accumulation_steps=3
)


class OutOfMemoryError(Exception):
    """Of the name, though not of the class, that torch and Ray give it."""


class WorkerGroupError(Exception):
    """Ray Train's, as far as it matters."""

    def __init__(self, message: str, failures: dict[int, Exception]) -> None:
        super().__init__(message)
        self.worker_failures = failures


def no_space(text: str = "No space left on device") -> OSError:
    return OSError(errno.ENOSPC, text)


@pytest.mark.parametrize(
    "error",
    [
        no_space(),
        no_space("in another language"),
        OSError(errno.EDQUOT, "also in another language"),
        Exception("disk quota exceeded (os error 122)"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError(
            "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file "
            "data/3: file write failed"
        ),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 134144 vs 134052"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=[
        "errno",
        "words",
        "quota",
        "quota words",
        "pyarrow",
        "torch",
        "torch, the last words",
        "safetensors",
    ],
)
def test_full_disk_is_told_with_what_mends_it(error: Exception) -> None:
    told = explained(error, CONFIG)
    assert told is not None
    assert told.startswith("no space left to write a checkpoint (")
    assert str(error) in told
    assert "set TMPDIR and --output to a larger disk" in told
    assert "\n" not in told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_full_disk_is_told_as_torch_meets_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.save({"weights": torch.zeros(100_000)}, "/dev/full")
    assert (explained(caught.value, CONFIG) or "").startswith("no space left")


MEMORY_ERRORS = {
    "cuda": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
    "cuda error": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously …"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "torch": torch.OutOfMemoryError("Allocation on device"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: …"
    ),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40 bytes."),
    "python": MemoryError(),
    "system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "by name": OutOfMemoryError("Task was killed due to the node running low on memory."),
}


@pytest.mark.parametrize("error", MEMORY_ERRORS.values(), ids=MEMORY_ERRORS)
def test_lack_of_memory_is_told_with_its_knobs(error: Exception) -> None:
    told = explained(error, CONFIG)
    assert told is not None
    # 96 windows over 4 workers and 3 forwards.
    assert told.startswith("out of memory with 8 windows in a forward (")
    assert "raise --gradient-accumulation-steps (now 3), which keeps the batch of 96" in told
    assert "\n" not in told


def test_lack_of_memory_is_told_as_torch_meets_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert (explained(caught.value, CONFIG) or "").startswith("out of memory")


def test_worker_that_ray_kills_for_memory_is_told() -> None:
    from ray.exceptions import OutOfMemoryError as KilledError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import ControllerError
    from ray.train.v2.api.exceptions import WorkerGroupError as GroupError

    killed = KilledError("Task was killed due to the node running low on memory.")
    lost = WorkerHealthCheckFailedError("A worker health check failed", killed)
    for error in (GroupError("worker 0 is gone", {0: lost}), ControllerError(killed)):
        sent = pickle.loads(pickle.dumps(error))
        told = explained(sent, CONFIG)
        assert told is not None
        assert "(Task was killed due to the node running low on memory.)" in told


@pytest.mark.parametrize("kind", [InputError, NotFiniteError])
def test_what_is_plain_already_is_passed_on(kind: type[Exception]) -> None:
    text = "step 12 of 40: the loss is not finite (label nan); no space left on device, out of memory"
    assert explained(kind(text), CONFIG) == text


@pytest.mark.parametrize(
    "error",
    [
        KeyError("logits"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionError("Connection closed by peer"),
        AssertionError(),
        ValueError("an answer stands out of memory"),
        ValueError("unexpected position 7"),
    ],
    ids=repr,
)
def test_what_a_retry_may_get_over_is_not_explained(error: Exception) -> None:
    assert explained(error, CONFIG) is None


def test_cause_of_an_error_is_found_however_deep() -> None:
    error, upload = RuntimeError("the checkpoint is lost"), ValueError("the upload failed")
    error.__cause__, upload.__cause__ = upload, no_space()
    assert "[Errno 28]" in (explained(error, CONFIG) or "")


def test_error_that_ray_wraps_is_found() -> None:
    wrapped = Exception("the task failed")
    wrapped.cause = InputError("d.json: no such file")  # type: ignore[attr-defined]
    assert explained(wrapped, CONFIG) == "d.json: no such file"
    wrapped.cause = "a text"  # type: ignore[attr-defined]
    assert explained(wrapped, CONFIG) is None


def test_one_worker_that_knows_why_explains_the_others() -> None:
    lost = ConnectionError("Connection closed by peer")
    group = WorkerGroupError("two workers failed", {0: lost, 1: InputError("lower --learning-rate"), 2: lost})
    assert explained(group, CONFIG) == "lower --learning-rate"
    assert explained(WorkerGroupError("two workers failed", {0: lost, 1: lost}), CONFIG) is None


def test_worker_is_believed_before_the_error_that_quotes_it() -> None:
    refusal = InputError("s3://x: cannot be written (No space left on device); free some space")
    group = WorkerGroupError(f"Training failed due to worker errors:\nTraceback …\n{refusal}", {0: refusal})
    assert explained(group, CONFIG) == str(refusal)
    full = WorkerGroupError(f"Training failed due to worker errors:\n{no_space()}", {0: no_space()})
    assert f"({no_space()})" in (explained(full, CONFIG) or "")


def test_only_the_first_line_of_a_long_error_is_told() -> None:
    error = RuntimeError("CUDA out of memory. " + "x" * 500 + "\nby Tensor.mul_\nat line 7")
    told = explained(error, CONFIG) or ""
    assert "Tensor.mul_" not in told
    assert len(told) < 500


def test_error_comes_with_all_that_caused_it() -> None:
    inner, other = KeyError("a"), ValueError("b")
    inner.__cause__ = other
    group = WorkerGroupError("all", {0: inner, 1: other})
    assert set(causes(group)) == {inner, other, group}
    assert list(causes(other)) == [other]


class Run:
    """A training that fails after each number of new checkpoints, and then ends."""

    def __init__(self, *advances: int) -> None:
        self.advances = list(advances)
        self.checkpoints = 0

    def fit(self) -> str:
        if not self.advances:
            return "trained"
        self.checkpoints += self.advances.pop(0)
        raise RuntimeError("a node is lost")

    def newest(self) -> str | None:
        return f"step-{self.checkpoints}" if self.checkpoints else None


def test_failures_count_since_the_last_new_checkpoint() -> None:
    run = Run(1, 3, 1, 1, 2, 1)
    assert as_long_as_it_advances(run.fit, run.newest, lambda error: True) == "trained"


@pytest.mark.parametrize(("advances", "left"), [((0, 1), 1), ((2, 0, 1), 1)])
def test_run_that_fails_without_a_new_checkpoint_ends(advances: tuple[int, ...], left: int) -> None:
    run = Run(*advances)
    with pytest.raises(RuntimeError, match="a node is lost"):
        as_long_as_it_advances(run.fit, run.newest, lambda error: True)
    assert len(run.advances) == left


def test_failure_that_would_repeat_ends_the_run_at_once() -> None:
    run = Run(1, 1)
    with pytest.raises(RuntimeError, match="a node is lost"):
        as_long_as_it_advances(run.fit, run.newest, lambda error: False)
    assert len(run.advances) == 1
