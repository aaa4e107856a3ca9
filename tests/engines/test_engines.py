from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    ServeConfig,
    TeacherLogitsConfig,
    WindowConfig,
)
from tinyqa_ray.core import said
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens, Windower, Windows
from tinyqa_ray.engines import devices
from tinyqa_ray.engines.devices import pick_device, pick_dtype
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained

FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta"])


@pytest.fixture
def engine(family: str, request: pytest.FixtureRequest) -> tuple[TorchEngine, Windower]:
    folder = request.getfixturevalue(f"tiny_{family}")
    windower = Windower(
        pretrained.load_tokenizer(folder), WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=16)
    )
    return TorchEngine(pretrained.load_qa_model(folder), device="cpu"), windower


def some_windows(windower: Windower) -> Windows:
    paragraphs = [row for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
    contexts = ["owl", *(row["context"] for row in paragraphs[:4]), "", "[PAD] <pad> rye bread"]
    return windower.windows([("Who built the lighthouse?", context) for context in contexts])


@FAMILIES
@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_batched_logits_equal_those_of_each_window_alone(
    engine: tuple[TorchEngine, Windower], budget: int
) -> None:
    forward, windower = engine
    windows = some_windows(windower)
    starts, ends = forward.logits(windows, max_batch_tokens=budget)
    assert [len(row) for row in starts] == [len(row) for row in ends] == windows.lengths.tolist()
    for w in range(len(windows)):
        ((_, start, end),) = forward.run(windows, [np.array([w])])
        np.testing.assert_allclose(starts[w], start[0], atol=1e-5)
        np.testing.assert_allclose(ends[w], end[0], atol=1e-5)


@FAMILIES
def test_windows_differ_so_that_a_wrong_order_would_show(engine: tuple[TorchEngine, Windower]) -> None:
    forward, windower = engine
    starts, _ = forward.logits(some_windows(windower))
    assert len({round(float(row[0]), 3) for row in starts}) == len(starts)


@FAMILIES
@pytest.mark.parametrize("budget", [1, 64, 200])
def test_token_budget_counts_padding(
    engine: tuple[TorchEngine, Windower], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, windower = engine
    windows = some_windows(windower)
    shapes: list[tuple[int, int]] = []
    original = TorchEngine.run

    def watched(self: TorchEngine, windows: Tokens, batches: Any) -> Any:
        for made in original(self, windows, batches):
            shapes.append(made[1].shape)
            yield made

    monkeypatch.setattr(TorchEngine, "run", watched)
    forward.logits(windows, max_batch_tokens=budget)
    assert sum(rows for rows, _ in shapes) == len(windows)
    assert all(rows == 1 or rows * tokens <= budget for rows, tokens in shapes)
    assert any(rows > 1 for rows, _ in shapes) == (budget > 1)


@pytest.mark.parametrize("family", ["bert"])
def test_token_types_reach_the_model(engine: tuple[TorchEngine, Windower]) -> None:
    forward, windower = engine
    windows = some_windows(windower)
    before, _ = forward.logits(windows)
    forward.inputs = ("input_ids", "attention_mask")
    after, _ = forward.logits(windows)
    assert not np.allclose(before[0], after[0], atol=1e-3)


def test_bf16_is_computed_in_fp32_where_it_would_be_emulated_and_that_is_said_once(
    has: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    has("avx2")
    cpu = torch.device("cpu")
    assert [pick_dtype("bf16", cpu), pick_dtype("bf16", cpu)] == [torch.float32, torch.float32]
    assert caplog.messages == [
        "bf16 is computed in fp32: this processor would emulate it, a hundred times slower"
    ]
    has("avx2", "avx512", "bf16")
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("card", "precision", "chosen"),
    [
        ((7, 0), "bf16", torch.float16),
        ((8, 0), "bf16", torch.bfloat16),
        ((5, 2), "bf16", torch.float32),
        ((5, 2), "fp16", torch.float32),
        ((7, 0), "fp16", torch.float16),
        ((7, 0), "fp32", torch.float32),
        ((7, 0), "auto", torch.float16),
        ((9, 0), "auto", torch.bfloat16),
        ((5, 2), "auto", torch.float32),
    ],
)
def test_precision_that_a_card_would_emulate_is_replaced_and_that_is_said_once(
    card: tuple[int, int],
    precision: str,
    chosen: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    said.say_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    cuda = torch.device("cuda")
    assert [pick_dtype(precision, cuda), pick_dtype(precision, cuda)] == [chosen, chosen]
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[chosen]
    told = f"{precision} is computed in {name}: this card would only emulate it"
    assert caplog.messages == ([] if precision in ("auto", name) else [told])


def test_named_device_is_taken() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device().type in ("cpu", "cuda")


@pytest.fixture
def two_lanes(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TorchEngine, Windower]]:
    """An engine of two cores, whatever this machine has."""
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    windower = Windower(
        pretrained.load_tokenizer(tiny_bert), WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=16)
    )
    yield TorchEngine(pretrained.load_qa_model(tiny_bert), device="cpu"), windower
    torch.set_num_threads(before)


def test_several_batches_run_side_by_side_on_a_core_each(
    two_lanes: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, windower = two_lanes
    launch, seen = forward._launch, dict[int, int]()
    both = threading.Barrier(2, timeout=20)

    def watched(windows: Tokens, batch: Any) -> torch.Tensor:
        if threading.get_ident() not in seen:
            seen[threading.get_ident()] = torch.get_num_threads()
            both.wait()  # passes only when the other lane is here as well
        return launch(windows, batch)

    monkeypatch.setattr(forward, "_launch", watched)
    forward.logits(some_windows(windower), max_batch_tokens=48)
    assert [*seen.values()] == [1, 1]
    assert torch.get_num_threads() == 2


def test_batch_alone_has_all_cores_and_two_at_a_time_share_them(
    two_lanes: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, windower = two_lanes
    windows = some_windows(windower)
    launch, seen = forward._launch, []
    held, go_on = threading.Event(), threading.Event()

    def watched(windows: Tokens, batch: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if len(seen) == 1:
            held.set()
            go_on.wait(20)
        return launch(windows, batch)

    monkeypatch.setattr(forward, "_launch", watched)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(lambda: list(forward.run(windows, [np.array([0])])))
        held.wait(20)
        list(forward.run(windows, [np.array([1])]))
        go_on.set()
        first.result()
    assert seen == [2, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("quota", "lanes"), [(1, 1), (2, 2)])
def test_engine_computes_on_no_more_cores_than_a_container_may_use(
    quota: int, lanes: int, two_lanes: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch has a thread for each core of the machine, and a container's quota then stops all of them."""
    monkeypatch.setattr(devices, "usable_cores", lambda: quota)
    torch.set_num_threads(4)
    other, windower = two_lanes
    forward = TorchEngine(other.model, device="cpu")
    assert forward.lanes == lanes
    launch, seen = forward._launch, list[int]()

    def watched(windows: Tokens, batch: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return launch(windows, batch)

    monkeypatch.setattr(forward, "_launch", watched)
    windows = some_windows(windower)
    for batches in ([np.array([0])], [np.array([0]), np.array([1])]):
        list(forward.run(windows, batches))
    assert seen == [quota, 1, 1]


def test_run_that_is_left_early_leaves_nothing_behind(two_lanes: tuple[TorchEngine, Windower]) -> None:
    forward, windower = two_lanes
    windows = some_windows(windower)
    batches = [np.array([number]) for number in range(len(windows))]
    left = forward.run(windows, batches)
    batch, _, _ = next(left)
    left.close()  # type: ignore[attr-defined]
    assert batch.tolist() == [0]
    assert [each.tolist() for each, _, _ in forward.run(windows, batches)] == [b.tolist() for b in batches]


class Small:
    """Memory for so many tokens in a forward."""

    def __init__(self, engine: TorchEngine, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = tokens
        self.shapes: list[tuple[int, int]] = []
        self.forward = engine._call
        monkeypatch.setattr(engine, "_call", self)

    def __call__(self, **inputs: torch.Tensor) -> Any:
        rows, tokens = inputs["input_ids"].shape
        self.shapes.append((rows, tokens))
        if rows * tokens > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.forward(**inputs)


@FAMILIES
def test_batch_that_lacks_memory_is_halved_and_scores_and_order_stay(
    engine: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, windower = engine
    windows = some_windows(windower)
    longest = int(windows.lengths.max())
    expected = forward.logits(windows, max_batch_tokens=4096)
    small = Small(forward, 2 * longest, monkeypatch)
    found = forward.logits(windows, max_batch_tokens=4096)
    for ours, theirs in zip(found, expected, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)
    assert len(caplog.records) == 1
    assert f"batches are halved, to at most {len(windows) * longest // 2} tokens" in caplog.text
    small.shapes.clear()
    forward.logits(windows, max_batch_tokens=4096)
    assert all(rows * tokens <= small.tokens for rows, tokens in small.shapes), "it is not tried again"
    assert len(caplog.records) == 1


COMMANDS = (AnswerConfig, AugmentConfig, DistillConfig, EvaluateConfig, ServeConfig, TeacherLogitsConfig)


@pytest.mark.parametrize("family", ["bert"])
def test_lack_of_memory_names_no_option_that_some_command_lacks(
    engine: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, windower = engine
    Small(forward, 10, monkeypatch)
    with pytest.raises(
        InputError, match=r"single window of \d+ tokens.*shorter windows.*larger one$"
    ) as refused:
        forward.logits(some_windows(windower), max_batch_tokens=4096)
    assert caplog.text
    named = set(re.findall(r"--([\w-]+)", f"{refused.value} {caplog.text}"))
    for command in COMMANDS:
        fields = {field.name.replace("_", "-") for field in dataclasses.fields(command)}
        assert named <= fields, command.__name__


def test_batches_side_by_side_that_lack_memory_are_halved(
    two_lanes: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, windower = two_lanes
    windows = some_windows(windower)
    expected = forward.logits(windows, max_batch_tokens=96)
    Small(forward, 48, monkeypatch)
    for ours, theirs in zip(forward.logits(windows, max_batch_tokens=96), expected, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)


@FAMILIES
def test_other_errors_of_a_forward_go_through(
    engine: tuple[TorchEngine, Windower], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, windower = engine

    def broken(**inputs: torch.Tensor) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(forward, "_call", broken)
    with pytest.raises(RuntimeError, match="size of tensor"):
        forward.logits(some_windows(windower))


@FAMILIES
def test_head_of_a_model_in_half_precision_computes_in_fp32(
    engine: tuple[TorchEngine, Windower], family: str, request: pytest.FixtureRequest
) -> None:
    _, windower = engine
    folder = request.getfixturevalue(f"tiny_{family}")
    windows = some_windows(windower)
    half = pretrained.load_qa_model(folder, dtype=torch.bfloat16)
    ids = torch.from_numpy(windows.input_ids[1])[None].long()
    types = torch.from_numpy(windows.type_ids[1])[None].long()
    with torch.inference_mode():
        states = half.base_model(ids, token_type_ids=types if family == "bert" else None).last_hidden_state
        wanted = half.qa_outputs.float()(states.float())
    forward = TorchEngine(pretrained.load_qa_model(folder, dtype=torch.bfloat16), device="cpu")
    ((_, start, end),) = forward.run(windows, [np.array([1])])
    np.testing.assert_allclose(np.stack([start[0], end[0]], 1), wanted[0], atol=1e-6)
