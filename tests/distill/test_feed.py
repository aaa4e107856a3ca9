from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill import loop
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.feed import StepInput, fed, step_input
from tinyqa_ray.distill.loop import train
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.teacher_logits.window_dataset import window_files

CPU = torch.device("cpu")


def empty(step: int) -> StepInput:
    return StepInput(np.array([step]), ())


def feeding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize("steps", [range(0), range(1), range(5, 25)])
def test_steps_come_once_each_and_in_order(steps: range) -> None:
    with fed(empty, steps, CPU) as inputs:
        assert [int(given.windows[0]) for given in inputs] == list(steps)


def test_next_steps_are_prepared_in_another_thread_while_one_computes() -> None:
    begun: list[tuple[int, bool]] = []
    enough = threading.Event()

    def prepare(step: int) -> StepInput:
        begun.append((step, threading.current_thread() is threading.main_thread()))
        if step == 12:
            enough.set()
        return empty(step)

    with fed(prepare, range(10, 90), CPU) as inputs:
        assert next(inputs).windows.tolist() == [10]
        # The loop is at step 10 and asks for nothing more.
        assert enough.wait(30)
        time.sleep(0.05)
        assert begun in ([(step, False) for step in range(10, last)] for last in (13, 14))


def test_error_comes_where_its_step_is_taken() -> None:
    def prepare(step: int) -> StepInput:
        if step == 2:
            raise OSError("the disk is gone")
        return empty(step)

    with fed(prepare, range(9), CPU) as inputs:
        assert [int(next(inputs).windows[0]) for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            next(inputs)


def test_thread_ends_with_the_loop_even_when_that_fails() -> None:
    def broken() -> None:
        with fed(empty, range(100), CPU) as inputs:
            next(inputs)
            assert feeding_threads()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert not feeding_threads()


def test_training_reads_what_it_would_without_a_thread(
    tiny_windows: str, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, and the thread in which each was prepared."""
    config = DistillConfig(
        data=tiny_windows,
        student=tiny_bert,
        objective=("labels",),
        batch_size=4,
        gradient_accumulation_steps=2,
        epochs=1.0,
        threads=1,
    )
    data, session = WindowData(window_files(tiny_windows), 0), LocalSession(tmp_path)
    seen: list[StepInput] = []
    prepared_in: set[str] = set()
    launch = loop.train_step

    def noted(strategy: object, given: StepInput, *rest: object) -> object:
        seen.append(given)
        return launch(strategy, given, *rest)  # type: ignore[arg-type]

    def prepared(*given: object, **options: object) -> StepInput:
        prepared_in.add(threading.current_thread().name)
        return step_input(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", noted)
    monkeypatch.setattr(loop, "step_input", prepared)
    train(config, session)
    order = loop.Order(data.lengths, config.batch_size, config.epochs, config.seed)
    assert len(seen) == order.steps
    for step, given in enumerate(seen):
        wanted = step_input(data, order.batch(step), session, 2)
        assert np.array_equal(given.windows, wanted.windows)
        for part, other in zip(given.parts, wanted.parts, strict=True):
            assert torch.equal(part.input_ids, other.input_ids)
            assert torch.equal(part.token_mask, other.token_mask)
    assert prepared_in == {"feed_0"}
    assert not feeding_threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_batch_is_what_it_is_on_the_host(tiny_windows: str) -> None:
    data = WindowData(window_files(tiny_windows), 0)
    rows = np.arange(5)
    here, there = data.batch(rows, rows), data.batch(rows, rows).to(torch.device("cuda"))
    for name in ("input_ids", "token_type_ids", "token_mask", "lengths", "start_positions", "start_logits"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu()), name
