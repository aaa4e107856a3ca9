from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.batches import Order, WindowData, micro_batch_parts, micro_batches
from tinyqa_ray.teacher_logits.window_dataset import logit_columns, schema

PAD = 7
RECORDED = [
    [10, 7, 7],
    [1, 11, 1],
    [2, 10, 2],
    [0, 9, 9],
    [5, 5, 10],
    [11, 1, 6],
    [3, 4, 3],
    [3, 8, 8],
    [6, 6, 4],
    [8, 0, 0],
]

orders = st.builds(
    lambda lengths, batch_size, epochs, seed: Order(np.array(lengths), batch_size, epochs, seed),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=150),
    batch_size=st.integers(1, 12),
    epochs=st.sampled_from([0.3, 1.0, 1.5, 3.0]),
    seed=st.integers(0, 5),
)


def write_windows(
    path: Path,
    lengths: list[int],
    first: int = 0,
    *,
    typed: bool = True,
    logits: bool = True,
    labels: bool = True,
    teachers: int = 1,
) -> str:
    """A file of windows whose every value tells its row, and of logits also the teacher."""
    columns = schema(teachers)
    rows: list[dict[str, Any]] = []
    for i, length in enumerate(lengths, start=first):
        rows.append(
            {
                "window_id": 1000 + i,
                "question_id": f"q{i}",
                "paragraph_id": "p",
                "copy": 0,
                "input_ids": [100 + i] * length,
                "token_type_ids": [0] + [1] * (length - 1) if typed else None,
                "context_start": 1,
                "offsets": [],
                "start_position": i % length if labels else -1,
                "end_position": -1,
            }
        )
        for teacher in range(teachers if logits else 0):
            start, end = logit_columns(teacher)
            rows[-1][start] = np.full(length, i + 0.5 + 10 * teacher, np.float16)
            rows[-1][end] = np.full(length, -i - 10 * teacher, np.float16)
    table = pa.Table.from_pylist(rows, schema=columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, columns) as writer:
        writer.write_table(table)
    return str(path)


@settings(deadline=None, max_examples=60)
@given(orders)
def test_every_batch_is_full_and_every_epoch_sees_every_window(order: Order) -> None:
    batches = [order.batch(step) for step in range(order.steps)]
    assert {len(batch) for batch in batches} == {order.batch_size}
    windows = len(order.lengths)
    seen = np.bincount(np.concatenate(batches), minlength=windows)
    assert order.steps == math.ceil(windows * order.epochs / order.batch_size)
    # Every permutation that is used up counts each window once; the rest of the last adds one to some.
    drawn = order.steps * order.batch_size
    assert set(seen) <= {drawn // windows, -(-drawn // windows)}


@settings(deadline=None, max_examples=30)
@given(orders)
def test_order_is_a_function_of_its_fields_and_the_step(order: Order) -> None:
    same = Order(order.lengths.copy(), order.batch_size, order.epochs, order.seed)
    for step in reversed(range(order.steps)):
        assert np.array_equal(same.batch(step), order.batch(step))


def batch_worked_out_alone(order: Order, step: int) -> np.ndarray:
    """A batch from nothing but the fields: what a run that was begun by an earlier version went on with."""
    number, windows = step // 64, len(order.lengths)
    steps = range(number * 64, min(number * 64 + 64, order.steps))
    epochs = -(-steps.stop * order.batch_size // windows)
    laid = [np.random.default_rng([order.seed, 0, epoch]).permutation(windows) for epoch in range(epochs)]
    drawn = np.concatenate(laid)[steps.start * order.batch_size : steps.stop * order.batch_size]
    drawn = drawn[np.argsort(-order.lengths[drawn], kind="stable")]
    place = np.random.default_rng([order.seed, 1, number]).permutation(len(steps))[step - steps.start]
    return drawn[place * order.batch_size : (place + 1) * order.batch_size]


@settings(deadline=None, max_examples=60)
@given(order=orders, data=st.data())
def test_steps_asked_for_in_any_order_have_the_batches_they_always_had(
    order: Order, data: st.DataObject
) -> None:
    for step in data.draw(st.lists(st.integers(0, order.steps - 1), max_size=12)):
        np.testing.assert_array_equal(order.batch(step), batch_worked_out_alone(order, step))


@pytest.mark.parametrize(
    ("windows", "batch_size", "epochs"),
    [(6400, 10, 2.0), (1000, 7, 3.0), (50, 7, 4.0)],  # epochs end with groups, within one, in its midst
)
def test_steps_in_order_draw_each_epoch_and_each_group_once(
    windows: int, batch_size: int, epochs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permutation of millions of windows takes about as long as a training step on a fast card."""
    seeds: list[tuple[int, ...]] = []
    generator = np.random.default_rng

    def counted(seed: list[int]) -> np.random.Generator:
        seeds.append(tuple(seed))
        return generator(seed)

    monkeypatch.setattr(np.random, "default_rng", counted)
    order = Order(np.ones(windows, np.int64), batch_size, epochs, 0)
    for step in range(order.steps):
        order.batch(step)
    drawn_epochs = -(-order.steps * batch_size // windows)
    groups = -(-order.steps // 64)
    wanted = [(0, 0, epoch) for epoch in range(drawn_epochs)] + [(0, 1, group) for group in range(groups)]
    assert sorted(seeds) == wanted


def test_order_is_what_it_always_was() -> None:
    """Recorded: a run that was begun by an earlier version goes on over the same batches."""
    order = Order(np.array([5, 9, 2, 7, 7, 3, 8, 1, 6, 4, 2, 9]), 3, 2.5, 7)
    assert [order.batch(step).tolist() for step in range(order.steps)] == RECORDED


def test_another_seed_gives_another_order() -> None:
    lengths = np.arange(1, 101)
    assert not np.array_equal(Order(lengths, 10, 1, 0).batch(0), Order(lengths, 10, 1, 1).batch(0))


def test_epochs_differ_in_order() -> None:
    order = Order(np.ones(640, dtype=np.int64), 10, 2, 0)
    first, second = ([order.batch(step) for step in range(start, start + 64)] for start in (0, 64))
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_workers_and_accumulation_part_the_same_global_batch(workers: int, parts: int, each: int) -> None:
    batch = np.random.default_rng(0).permutation(1000)[: workers * parts * each]
    dealt = [micro_batches(batch, rank, workers, parts) for rank in range(workers)]
    assert {len(micro) for mine in dealt for micro in mine} == {each}
    assert {len(mine) for mine in dealt} == {parts}
    assert sorted(np.concatenate([micro for mine in dealt for micro in mine])) == sorted(batch)


@st.composite
def elastic(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Batch size, accumulation and workers that fit, and how many of the workers are at work."""
    accumulation, workers, each = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    return accumulation * workers * each, accumulation, workers, draw(st.integers(1, workers))


@settings(deadline=None, max_examples=200)
@given(elastic())
def test_any_number_of_workers_parts_the_global_batch(sizes: tuple[int, int, int, int]) -> None:
    """Every rank makes as many forwards, none of them empty: workers wait for each other."""
    batch_size, accumulation, workers, present = sizes
    parts = micro_batch_parts(batch_size, accumulation, workers, present)
    batch = np.random.default_rng(0).permutation(10_000)[:batch_size]
    dealt = [micro_batches(batch, rank, present, parts) for rank in range(present)]
    assert {len(mine) for mine in dealt} == {parts}
    assert min(len(part) for mine in dealt for part in mine) >= 1
    assert sorted(np.concatenate([part for mine in dealt for part in mine])) == sorted(batch)


@settings(deadline=None, max_examples=200)
@given(elastic())
def test_fewer_workers_make_more_forwards_of_the_same_size(sizes: tuple[int, int, int, int]) -> None:
    """What fits into memory with all workers fits with some."""
    batch_size, accumulation, workers, present = sizes
    each = batch_size // (accumulation * workers)
    parts = micro_batch_parts(batch_size, accumulation, workers, present)
    assert micro_batch_parts(batch_size, accumulation, workers, workers) == accumulation
    largest = max(
        len(part)
        for rank in range(present)
        for part in micro_batches(np.arange(batch_size), rank, present, parts)
    )
    # Where a forward holds one window, some must hold two: every rank makes as many.
    assert largest <= max(each, 2)
    assert (parts - 1) * present < accumulation * workers, "a forward more than needed"


def test_workers_get_like_shares_of_the_long_windows() -> None:
    lengths = np.random.default_rng(0).integers(10, 384, size=640)
    batch = Order(lengths, 64, 1, 0).batch(0)
    tokens = [lengths[np.concatenate(micro_batches(batch, rank, 4, 2))].sum() for rank in range(4)]
    assert max(tokens) < 1.1 * min(tokens)


def padding(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / padded


def test_grouping_by_length_leaves_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(20, 384, size=4000)
    order = Order(lengths, 16, 1, 0)
    grouped = padding(lengths, [order.batch(step) for step in range(order.steps)])
    unordered = padding(lengths, np.array_split(np.random.default_rng(1).permutation(4000), 250))
    assert grouped < 0.05 < 0.4 < unordered


@pytest.mark.parametrize(
    ("lengths", "rows", "expected"),
    [
        ([4, 9, 30], [0], 8),
        ([8, 9, 30], [0], 8),
        ([4, 9, 30], [0, 1], 16),
        ([4, 9, 30], [1, 2], 30),  # no window is longer, and a model may read no more
        ([4, 9, 11], [1], 11),
    ],
)
def test_batch_is_padded_to_a_multiple_of_eight_of_its_longest_window_but_never_beyond_the_longest_of_all(
    tmp_path: Path, lengths: list[int], rows: list[int], expected: int
) -> None:
    batch = WindowData([write_windows(tmp_path / "a.arrow", lengths)], PAD).batch(
        np.array(rows), np.arange(3)
    )
    assert batch.start_logits is not None
    assert batch.end_logits is not None
    shapes = {tuple(each.shape) for each in (batch.input_ids, batch.token_type_ids, batch.token_mask)}
    assert shapes == {(len(rows), expected)}
    assert batch.start_logits.shape == batch.end_logits.shape == (1, len(rows), expected)
    assert batch.token_mask.sum(1).tolist() == [lengths[row] for row in rows]
    assert (batch.input_ids[~batch.token_mask] == PAD).all()
    assert (batch.start_logits[0][~batch.token_mask] == 0).all()


def test_batch_holds_its_windows_and_counts_the_global_batch(tmp_path: Path) -> None:
    data = WindowData([write_windows(tmp_path / "a.arrow", [3, 2, 3])], PAD)
    batch = data.batch(np.array([2, 1]), np.array([2, 1, 0]))
    assert batch.input_ids.tolist() == [[102, 102, 102], [101, 101, PAD]]
    assert batch.token_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.token_type_ids.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.start_positions.tolist() == [2, 1]
    assert batch.end_positions.tolist() == [-1, -1]
    assert batch.start_logits is not None
    assert batch.end_logits is not None
    assert batch.start_logits.tolist() == [[[2.5, 2.5, 2.5], [1.5, 1.5, 0.0]]]
    assert batch.end_logits.tolist() == [[[-2.0, -2.0, -2.0], [-1.0, -1.0, 0.0]]]
    assert batch.start_logits.dtype == torch.float32
    # Counts are of the global batch, whose windows have 3, 2 and 3 tokens.
    assert (batch.samples, batch.tokens, batch.pairs) == (3, 8, 22)


def test_windows_without_types_or_logits_are_read(tmp_path: Path) -> None:
    data = WindowData([write_windows(tmp_path / "a.arrow", [2, 3], typed=False, logits=False)], PAD)
    batch = data.batch(np.array([0, 1]), np.array([0, 1]))
    assert data.logits == []
    assert batch.start_logits is None
    assert batch.end_logits is None
    assert batch.token_type_ids.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_one_file_without_logits_means_none(tmp_path: Path) -> None:
    files = [
        write_windows(tmp_path / "a.arrow", [2]),
        write_windows(tmp_path / "b.arrow", [2], first=1, logits=False),
    ]
    assert WindowData(files, PAD).logits == []


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_teachers_kept_apart_come_one_by_one(tmp_path: Path, teachers: int) -> None:
    """As (teachers, windows, tokens), 0 on padding."""
    data = WindowData([write_windows(tmp_path / "a.arrow", [3, 2, 3], teachers=teachers)], PAD)
    batch = data.batch(np.array([2, 1]), np.array([2, 1, 0]))
    assert len(data.logits) == teachers
    assert batch.start_logits is not None
    assert batch.end_logits is not None
    assert batch.start_logits.shape == batch.end_logits.shape == (teachers, 2, 3)
    for teacher in range(teachers):
        shift = 10 * teacher
        assert (batch.start_logits[teacher] - shift).tolist() == [[2.5, 2.5, 2.5], [1.5, 1.5, -shift]]
        assert (batch.end_logits[teacher] + shift).tolist() == [[-2.0, -2.0, -2.0], [-1.0, -1.0, shift]]


def test_batch_moves_with_all_its_tensors(tmp_path: Path) -> None:
    data = WindowData([write_windows(tmp_path / "a.arrow", [4, 2], teachers=2)], PAD)
    batch = data.batch(np.array([0]), np.array([0, 1]))
    moved = batch.to(torch.device("meta"))
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.shape) == ("meta", before.shape), field.name
        else:
            assert after == before, field.name


def test_windows_of_plain_text_have_no_labels(tmp_path: Path) -> None:
    labelled = write_windows(tmp_path / "a.arrow", [3])
    plain = write_windows(tmp_path / "b.arrow", [3, 4], first=1, labels=False)
    assert not WindowData([plain], PAD).has_labels
    assert WindowData([plain, labelled], PAD).has_labels
    batch = WindowData([plain], PAD).batch(np.array([0, 1]), np.array([0, 1]))
    assert batch.start_positions.tolist() == batch.end_positions.tolist() == [-1, -1]


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_any_rows_of_several_files_are_found(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    cuts = [(0, 4), (4, 4), (4, 9), (9, 10)]  # the second is empty
    files = [write_windows(folder / f"{a}-{b}.arrow", lengths[a:b], first=a) for a, b in cuts]
    data = WindowData(files, PAD)
    chosen = np.array(rows)
    batch = data.batch(chosen, chosen)
    assert len(data) == len(lengths)
    assert data.window_ids(chosen) == [1000 + row for row in rows]
    assert batch.input_ids[:, 0].tolist() == [100 + row for row in rows]
    assert batch.token_mask.sum(1).tolist() == [lengths[row] for row in rows]


@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (2, 1), (3, 2)])
def test_words_of_a_global_batch_are_those_of_all_micro_batches(
    tmp_path: Path, workers: int, parts: int
) -> None:
    """However it is parted, so that all workers know the same ones, padding among them."""
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    files = [write_windows(tmp_path / f"{a}.arrow", lengths[a : a + 5], first=a) for a in (0, 5)]
    data, whole = WindowData(files, PAD), np.array([9, 4, 0, 4, 7, 2])
    shares = [rows for rank in range(workers) for rows in micro_batches(whole, rank, workers, parts)]
    held = {token for rows in shares for token in data.batch(rows, whole).input_ids.flatten().tolist()}
    words = data.words(whole)
    assert words.dtype == np.int64
    assert words.tolist() == sorted(held | {PAD}) == [PAD, 100, 102, 104, 107, 109]


def test_a_batch_copies_its_own_windows_only(tmp_path: Path) -> None:
    files = [write_windows(tmp_path / f"{i}.arrow", [300] * 200) for i in range(4)]
    held = pa.total_allocated_bytes()
    data = WindowData(files, PAD)
    assert pa.total_allocated_bytes() - held < 100_000, "the files are not memory-mapped"
    pool = pa.system_memory_pool()
    default = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        before = pool.max_memory()
        data.batch(np.array([0, 250, 799]), np.array([0, 250, 799]))
        assert pool.max_memory() - before < 100_000, "more was copied than three windows"
    finally:
        pa.set_memory_pool(default)


def test_a_batch_is_put_together_without_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table for each row took longer than a step may wait."""
    files = [write_windows(tmp_path / f"{i}.arrow", [3, 2], first=2 * i) for i in range(3)]
    data = WindowData(files, PAD)
    monkeypatch.delattr(pa, "concat_tables")
    batch = data.batch(np.array([5, 0, 2]), np.arange(6))
    assert batch.input_ids[:, 0].tolist() == [105, 100, 102]
    assert batch.input_ids.shape == (3, 3)


def test_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.arrow").write_bytes(b"not Arrow")
    with pytest.raises(InputError, match=r"bad\.arrow: cannot be read as Arrow windows"):
        WindowData([str(tmp_path / "bad.arrow")], PAD)
