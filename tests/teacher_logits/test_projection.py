from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.normalised import normalize_answer
from tinyqa_ray.datasets.windows import Pair, Tokens, Windower, Windows, labels
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.load import load_engine
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits.projection import (
    Projector,
    mean_of_distributions,
    project,
    shown_characters,
    targets,
)

WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
ALPHABET = "ab é,👍 \n東"


class Scripted(Engine):
    """An engine whose logits are drawn from the ids of the tokens, the same for equal windows."""

    name, parameters, max_batch_tokens, pad_id = "scripted", 0, 4096, 0

    def run(self, windows: Tokens, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            tokens = int(windows.lengths[batch].max())
            made = np.zeros((2, len(batch), tokens), np.float32)
            for row, window in enumerate(batch):
                ids = windows.input_ids[window]
                made[:, row, : len(ids)] = np.random.default_rng(ids.astype(np.uint64)).normal(
                    0, 3, (2, len(ids))
                )
            yield batch, made[0], made[1]


def pieces_tokenizer() -> Any:
    """A SentencePiece-like tokenizer: pieces hold the space before a word; offsets, too."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(
        tiny._texts(),
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {
    "wordpiece": tiny.wordpiece_tokenizer,
    "byte-level": tiny.bytelevel_tokenizer,
    "sentencepiece": pieces_tokenizer,
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: make() for name, make in TOKENIZERS.items()}


def best_span(start: Any, end: Any, windows: Windows, window: int) -> tuple[int, int]:
    """Characters of the best span of a window's context."""
    place, count = windows.context_start[window], windows.context_tokens[window]
    sums = start[place : place + count, None] + end[None, place : place + count]
    sums[np.tril_indices(count, -1)] = -np.inf
    first, last = np.unravel_index(sums.argmax(), sums.shape)
    offsets = windows.window_offsets(window)
    return int(offsets[first, 0]), int(offsets[last, 1])


def spans(lengths: Sequence[int], gaps: Sequence[int]) -> Any:
    """Spans of these lengths, with as many characters of space before each."""
    rows, at = [], 0
    for length, gap in zip(lengths, gaps, strict=True):
        rows.append((at + gap, at + gap + length))
        at += gap + length
    return np.array(rows, np.int32).reshape(-1, 2)


SPANS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=12).map(
    lambda pairs: spans(*zip(*pairs, strict=True))
)


@given(SPANS, SPANS)
def test_targets_never_fall_and_hold_the_first_and_the_last_character(student: Any, teacher: Any) -> None:
    firsts, lasts = targets(student, teacher)
    assert (np.diff(firsts) >= 0).all()
    assert (np.diff(lasts) >= 0).all()
    for (begin, end), first, last in zip(teacher, firsts, lasts, strict=True):
        holding = [n for n, (a, b) in enumerate(student) if a <= begin < b]
        assert holding in ([first], []) or not holding
        holding = [n for n, (a, b) in enumerate(student) if a < end <= b]
        assert holding in ([last], [])


@given(SPANS)
def test_equal_tokens_go_to_themselves(same: Any) -> None:
    firsts, lasts = targets(same, same)
    assert firsts.tolist() == lasts.tolist() == [*range(len(same))]


def test_bytes_of_one_character_begin_at_the_first_and_end_at_the_last() -> None:
    student = np.array([(0, 1), (2, 3), (2, 3), (2, 3), (4, 5)], np.int32)
    firsts, lasts = targets(student, np.array([(0, 1), (2, 3), (4, 5)], np.int32))
    assert firsts.tolist() == [0, 1, 4]
    assert lasts.tolist() == [0, 3, 4]


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20)


@given(LOGITS, st.floats(-20, 20, width=32), st.integers(1, 8), st.data())
def test_projection_keeps_mass_order_and_null(
    values: list[float], null: float, spare: int, data: st.DataObject
) -> None:
    logits = np.array(values, np.float32)
    places = np.sort(
        data.draw(st.lists(st.integers(1, len(values)), min_size=len(values), max_size=len(values)))
    )
    length = len(values) + spare
    made = project(logits, places, null, length)
    assert np.isfinite(made).all()
    assert made[0] == np.float32(null)
    whole = np.logaddexp.reduce(np.append(logits, null).astype(np.float64))
    for place in range(1, length):
        own = logits[places == place].astype(np.float64)
        if len(own):  # the mass of a token is that of the teacher's tokens that fall on it
            np.testing.assert_allclose(made[place], np.logaddexp.reduce(own), rtol=1e-5, atol=1e-5)
    empty = np.ones(length, bool)
    empty[[0, *places]] = False
    # What stands for nothing adds no more than the teacher's least likely token has.
    added = np.logaddexp.reduce(made[empty].astype(np.float64)) if empty.any() else -np.inf
    assert added <= min(*values, null) + 1e-4
    total = np.logaddexp.reduce(made.astype(np.float64))
    np.testing.assert_allclose(total, np.logaddexp(whole, added), atol=1e-4)


@given(LOGITS, st.floats(-20, 20, width=32))
def test_projection_between_equal_tokens_gives_the_same_numbers(values: list[float], null: float) -> None:
    logits = np.array(values, np.float32)
    made = project(logits, np.arange(2, 2 + len(values)), null, len(values) + 3)
    assert made[2 : 2 + len(values)].tolist() == logits.tolist()
    assert made[0] == np.float32(null)


@pytest.mark.parametrize("teacher", TOKENIZERS)
@pytest.mark.parametrize("student", TOKENIZERS)
@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text(ALPHABET, max_size=60), min_size=1, max_size=3))
def test_any_text_is_projected_to_finite_logits_with_the_teachers_null(
    student: str, teacher: str, texts: list[str], tokenizers: dict[str, Any]
) -> None:
    pairs = [("a é?", text) for text in texts]
    windows = Windower(tokenizers[student], WINDOW).windows(pairs)
    made = Projector(Scripted(), tokenizers[teacher], 512, WINDOW).logits(windows, pairs, None)
    its = Windower(tokenizers[teacher], replace(WINDOW, max_seq_len=512))
    for window in range(len(windows)):
        first, last = shown_characters(windows, window)
        question, context = pairs[windows.pair[window]]
        starts, ends = Scripted().logits(its.windows([(question, context[first:last])]))
        for found, wanted in ((made.starts, starts), (made.ends, ends)):
            assert len(found[window]) == len(windows.input_ids[window])
            assert np.isfinite(found[window]).all()
            assert found[window][0] == wanted[0][0]


@pytest.mark.parametrize("tokenizer", ["wordpiece", "byte-level"])
def test_teacher_with_the_students_tokens_gives_its_own_logits_in_the_context(
    tokenizer: str, tokenizers: dict[str, Any]
) -> None:
    """Where each token has characters of its own: a token of white space gives its mass to its neighbour."""
    pairs = asked()
    windows = Windower(tokenizers[tokenizer], WindowConfig()).windows(pairs)
    made = Projector(Scripted(), tokenizers[tokenizer], 512, WindowConfig()).logits(windows, pairs, None)
    starts, ends = Scripted().logits(windows)
    compared = 0
    for window in range(len(windows)):
        place, count = windows.context_start[window], windows.context_tokens[window]
        offsets = windows.window_offsets(window)
        apart = (offsets[:, 0] < offsets[:, 1]).all() and len(np.unique(offsets, axis=0)) == count
        compared += apart
        for found, wanted in ((made.starts, starts), (made.ends, ends)):
            shown = slice(place, place + count)
            assert not apart or found[window][shown].tolist() == wanted[window][shown].tolist()
    assert compared > 2


def asked() -> list[Pair]:
    document = tiny.squad_document()
    return [
        (question["question"], paragraph["context"])
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def answered() -> list[tuple[Pair, tuple[int, int]]]:
    document = tiny.squad_document()
    return [
        ((question["question"], paragraph["context"]), (start, start + len(answer["text"])))
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        for answer in question["answers"]
        for start in [answer["answer_start"]]
    ]


class Sure:
    """A teacher that knows the answers: the greatest logits where the labels of its own windows are."""

    def __init__(self, spans: dict[str, tuple[int, int]]) -> None:
        self.spans = spans

    def logits(self, windows: Tokens, max_batch_tokens: int | None = None) -> Any:
        assert isinstance(windows, Windows)
        starts, ends = labels(windows, [*self.spans.values()])
        made = []
        for places in (starts, ends):
            rows = [
                np.random.default_rng(len(ids)).normal(0, 1, len(ids)).astype(np.float32)
                for ids in windows.input_ids
            ]
            for row, place in zip(rows, places, strict=True):
                row[place] = 9
            made.append(rows)
        return made[0], made[1]


@pytest.mark.parametrize("teacher", TOKENIZERS)
@pytest.mark.parametrize("student", TOKENIZERS)
def test_best_span_is_the_teachers_answer(student: str, teacher: str, tokenizers: dict[str, Any]) -> None:
    rows = answered()
    pairs = [pair for pair, _ in rows]
    windows = Windower(tokenizers[student], WindowConfig()).windows(pairs)
    assert len(windows) == len(rows)
    sure = Sure({str(n): span for n, (_, span) in enumerate(rows)})
    made = Projector(cast("Engine", sure), tokenizers[teacher], 512, WindowConfig()).logits(
        windows, pairs, None
    )
    wrong = []
    for window, ((_, context), (first, last)) in enumerate(rows):
        a, b = best_span(made.starts[window], made.ends[window], windows, window)
        if normalize_answer(context[a:b]) != normalize_answer(context[first:last]):
            wrong.append((context[a:b], context[first:last]))
    assert len(wrong) <= 0.05 * len(rows), wrong


def test_text_that_the_teacher_cannot_read_at_once_is_read_in_parts(tokenizers: dict[str, Any]) -> None:
    pairs = [("Who is it?", "The owls hunt at night. " * 30)]
    windows = Windower(tokenizers["wordpiece"], WindowConfig()).windows(pairs)
    assert len(windows) == 1
    made = Projector(Scripted(), tokenizers["byte-level"], 96, WindowConfig()).logits(windows, pairs, None)
    place, count = int(windows.context_start[0]), int(windows.context_tokens[0])
    floor = made.starts[0][1]  # a token of the question
    reached = made.starts[0][place : place + count] > floor
    assert reached[: count // 8].any()
    assert reached[-count // 8 :].any()
    lowest = Scripted().logits(
        Projector(Scripted(), tokenizers["byte-level"], 96, WindowConfig()).windower.windows(
            [(pairs[0][0], pairs[0][1].strip())]
        )
    )
    nulls = [(start[0], end[0]) for start, end in zip(*lowest, strict=True)]
    assert len(nulls) > 1
    assert (made.starts[0][0], made.ends[0][0]) == min(nulls, key=sum)


def test_mean_of_distributions_is_that_of_probabilities_and_of_one_teacher_itself() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([4, 7], np.int32)
    teachers = [rng.normal(0, 4, 11).astype(np.float32) for _ in range(3)]
    np.testing.assert_allclose(mean_of_distributions(teachers[:1], lengths), teachers[0], atol=1e-5)
    made = mean_of_distributions(teachers, lengths)
    for window in (slice(0, 4), slice(4, 11)):
        each = [np.exp(row[window].astype(np.float64)) for row in teachers]
        wanted = np.mean([row / row.sum() for row in each], axis=0)
        found = np.exp(made[window].astype(np.float64))
        np.testing.assert_allclose(found / found.sum(), wanted, rtol=1e-4)
        # What windows are compared by stays: the mean of the teachers' log-normalisers.
        np.testing.assert_allclose(
            np.log(found.sum()), np.mean([np.log(row.sum()) for row in each]), rtol=1e-4
        )


FAMILIES = ("roberta", "xlm-roberta", "deberta-v2", "mpnet")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_real_teachers_answers_arrive_in_students_of_other_families(family: str, shared: Path) -> None:
    """Answers are compared as the official evaluator does: a student's token may hold the comma, too."""
    teacher = str(shared / "models" / "minilm-squad2")
    paragraphs = squad.read_squad(str(shared / "data" / "squad2" / "dev.json"))[::13]
    pairs = [(question.question, each.context) for each in paragraphs for question in each.questions][:40]
    config = WindowConfig(max_seq_len=192, doc_stride=64, max_query_len=40)
    student = pretrained.load_tokenizer(str(shared / "golden" / "families" / family))
    windows = Windower(student, config).windows(pairs)
    engine = load_engine(teacher, device="cpu")[0]
    projector = Projector(engine, pretrained.load_tokenizer(teacher), 512, config)
    made = projector.logits(windows, pairs, None)
    shown = [shown_characters(windows, window) for window in range(len(windows))]
    texts = [pairs[pair][1][first:last] for pair, (first, last) in zip(windows.pair, shown, strict=True)]
    read = projector.windower.windows(
        [(pairs[p][0], text) for p, text in zip(windows.pair, texts, strict=True)]
    )
    starts, ends = engine.logits(read)
    assert len(read) == len(windows)
    same = 0
    for window, text in enumerate(texts):
        a, b = best_span(made.starts[window], made.ends[window], windows, window)
        c, d = best_span(starts[window], ends[window], read, window)
        found = pairs[windows.pair[window]][1][a:b]
        same += normalize_answer(found) == normalize_answer(text[c:d])
    assert same >= 0.95 * len(windows), (same, len(windows))
