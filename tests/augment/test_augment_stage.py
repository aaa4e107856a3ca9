from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import modified
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM

from tinyqa_ray.augment import AugmentReport, augment, work
from tinyqa_ray.augment.agreement import Agreement
from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.augment.neighbours import Neighbours
from tinyqa_ray.augment.rewriting import STOP_WORDS, word_spans
from tinyqa_ray.augment.work import neighbours_of
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.core import shards, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.models import hub
from tinyqa_ray.reader import Reader

COPIES = 4


@pytest.fixture(scope="module")
def neighbours(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("neighbours") / "neighbours.parquet"
    found = neighbours_of(AugmentConfig(data="d", embeddings=tiny_bert, candidates=5))
    pq.write_table(found.to_table(), path)
    return str(path)


@pytest.fixture
def config(tiny_squad: str, tiny_bert: str) -> AugmentConfig:
    return AugmentConfig(
        data=tiny_squad, embeddings=tiny_bert, copies=COPIES, replace_probability=1.0, candidates=5
    )


@pytest.fixture
def originals(tiny_squad: str) -> list[squad.Paragraph]:
    return squad.read_squad(tiny_squad)


@pytest.fixture
def multiply(
    config: AugmentConfig, neighbours: str
) -> Callable[[list[squad.Paragraph]], tuple[list[squad.Paragraph], dict[str, float]]]:
    def run(paragraphs: list[squad.Paragraph]) -> tuple[list[squad.Paragraph], dict[str, float]]:
        table, counts = Augmenter(config, neighbours)(squad.to_table(paragraphs))
        return squad.from_table(table), counts

    return run


Multiply = Callable[[list[squad.Paragraph]], tuple[list[squad.Paragraph], dict[str, float]]]


def test_original_stands_first_unchanged(multiply: Multiply, originals: list[squad.Paragraph]) -> None:
    made, _ = multiply(originals)
    assert len(made) == len(originals) * (1 + COPIES)
    assert made[:: 1 + COPIES] == originals
    assert [paragraph.copy for paragraph in made] == list(range(1 + COPIES)) * len(originals)


def test_every_answer_stands_at_its_offset_in_every_copy(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    made, _ = multiply(originals)
    moved = 0
    for paragraph in made:
        original = next(each for each in originals if each.paragraph_id == paragraph.source_id)
        for question, before in zip(paragraph.questions, original.questions, strict=True):
            assert (question.id, question.question, question.is_impossible) == (
                before.id,
                before.question,
                before.is_impossible,
            )
            assert [answer.text for answer in question.answers] == [each.text for each in before.answers]
            for answer, old in zip(question.answers, before.answers, strict=True):
                end = answer.answer_start + len(answer.text)
                assert paragraph.context[answer.answer_start : end] == answer.text
                moved += answer.answer_start != old.answer_start
    assert moved > 0, "no answer moved, so nothing was tested"


def test_copies_change_and_are_counted(multiply: Multiply, originals: list[squad.Paragraph]) -> None:
    made, counts = multiply(originals)
    changed = sum(
        paragraph.context != next(o.context for o in originals if o.paragraph_id == paragraph.source_id)
        for paragraph in made
        if paragraph.copy
    )
    assert changed > 0.9 * len(originals) * COPIES
    assert counts["copies"] == len(made)
    assert counts["questions"] == sum(len(paragraph.questions) for paragraph in made)
    assert 0 < counts["words_replaced"] < counts["words"]


def test_paragraph_ids_are_unique_and_name_their_source(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    made, _ = multiply(originals)
    assert len({paragraph.paragraph_id for paragraph in made}) == len(made)
    assert {p.paragraph_id for p in made if p.copy == 2} == {f"{o.paragraph_id}~2" for o in originals}


def test_copies_of_a_paragraph_do_not_depend_on_its_shard(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    together, _ = multiply(originals)
    apart = [copy for paragraph in reversed(originals) for copy in reversed(multiply([paragraph])[0])]
    assert together == apart[::-1]


def test_another_seed_gives_other_copies(
    config: AugmentConfig, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    table = squad.to_table(originals)
    first: pa.Table = Augmenter(config, neighbours)(table)[0]
    other: pa.Table = Augmenter(replace(config, seed=config.seed + 1), neighbours)(table)[0]
    assert first["context"].to_pylist() != other["context"].to_pylist()


@pytest.mark.parametrize(
    ("absent", "complaint"),
    [
        ({"data": "/no/such.json"}, "no such file or folder"),
        ({"embeddings": "/no/such"}, "no such model folder"),
    ],
)
def test_absent_input_leaves_no_folder_behind(
    config: AugmentConfig, tmp_path: Path, absent: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        augment(replace(config, **absent), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_copies_are_not_multiplied_again(
    config: AugmentConfig, multiply: Multiply, originals: list[squad.Paragraph], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(squad.to_table(multiply(originals)[0]), tmp_path / "data" / "part.parquet")
    with pytest.raises(InputError, match="holds copies already"):
        augment(replace(config, data=str(tmp_path / "data")), str(tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_is_exact_finished_once_and_refuses_another_config(
    config: AugmentConfig, originals: list[squad.Paragraph], multiply: Multiply, tmp_path: Path
) -> None:
    config = replace(config, rows_per_shard=3)
    first, again = tmp_path / "first", tmp_path / "again"
    report = augment(config, str(first))
    assert augment(replace(config, actors=2), str(again)) == report
    assert contents(first / "paragraphs") == contents(again / "paragraphs")
    assert len(contents(first / "paragraphs")) == 3

    # read_squad checks every answer's offset.
    made, counts = multiply(originals)
    assert squad.read_squad(str(first)) == made
    assert report == AugmentReport(
        paragraphs=len(originals),
        teacher_found_in_originals=None,
        teacher_found_in_copies=None,
        **{name: int(value) for name, value in counts.items()},
    )
    page = (first / "report.html").read_text()
    assert "<mark>" in page
    assert "Who built the lighthouse?" in page

    before = modified.times(first)
    assert augment(config, str(first)) == report
    assert modified.times(first) == before

    with pytest.raises(InputError, match=r"other settings \(copies 4 there, 5 here\)"):
        augment(replace(config, copies=5), str(first))


def masked_lm(folder: Path, model: str) -> str:
    """The tiny model's encoder and tokenizer with a random masked-LM head."""
    torch.manual_seed(0)
    network = BertForMaskedLM(AutoConfig.from_pretrained(model))
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def proposing(config: AugmentConfig, tiny_bert: str, tmp_path: Path) -> AugmentConfig:
    return replace(config, masked_lm=masked_lm(tmp_path / "mlm", tiny_bert), embeddings=None)


def test_embeddings_of_the_hub_are_read_at_the_commit_that_the_run_keeps(
    config: AugmentConfig,
    neighbours: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: list[str],
) -> None:
    asked: list[str | None] = []

    def found(config: AugmentConfig) -> Neighbours:
        asked.append(config.embeddings)
        return Neighbours.from_table(pq.read_table(neighbours))

    monkeypatch.setattr(work, "connected", nullcontext)
    monkeypatch.setattr(work, "neighbours_of", found)
    monkeypatch.setattr(hub, "commit", lambda name, *, is_data=False: "a" * 40)
    augment(replace(config, masked_lm="none", embeddings="tester/encoder"), str(tmp_path / "out"))
    assert asked == ["tester/encoder@" + "a" * 40]
    published = stage_folder.require_finished(str(tmp_path / "out"), "augment")
    assert published["commits"] == {"tester/encoder": "a" * 40}
    assert here


def test_actor_with_a_card_works_on_two_shards_at_once_and_writes_the_same_copies(
    proposing: AugmentConfig, tiny_bert: str, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    calls = shards.calls_at_once(Augmenter, shards.Workers(num_gpus=1))
    assert calls["max_concurrent_calls_per_actor"] == 2
    augmenter = Augmenter(replace(proposing, teacher=tiny_bert), neighbours)
    tables = [squad.to_table([each]) for each in originals]
    alone = [augmenter(table) for table in tables]
    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(augmenter, tables)] == alone


@pytest.mark.parametrize("most", [64, 100_000])
def test_forwards_of_the_teacher_hold_no_more_tokens_than_allowed(
    config: AugmentConfig, tiny_bert: str, neighbours: str, most: int
) -> None:
    augmenter = Augmenter(replace(config, teacher=tiny_bert, max_batch_tokens=most), neighbours)
    assert augmenter.agreement is not None
    own = Reader.from_pretrained(tiny_bert, device="cpu").engine.max_batch_tokens
    assert augmenter.agreement.reader.engine.max_batch_tokens == min(most, own)


def test_masked_lm_proposes_for_its_words_and_neighbours_for_the_others(
    proposing: AugmentConfig, config: AugmentConfig, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    table = squad.to_table(originals)
    plain, masked = (squad.from_table(Augmenter(each, neighbours)(table)[0]) for each in (config, proposing))
    assert [each.context for each in plain] != [each.context for each in masked]
    for paragraph in masked:
        for question in paragraph.questions:
            for answer in question.answers:
                end = answer.answer_start + len(answer.text)
                assert paragraph.context[answer.answer_start : end] == answer.text


def test_copies_by_masked_lm_do_not_depend_on_their_shard(
    proposing: AugmentConfig, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    augmenter = Augmenter(proposing, neighbours)
    together = augmenter(squad.to_table(originals))[0]
    apart = [augmenter(squad.to_table([each]))[0] for each in originals]
    assert together.equals(pa.concat_tables(apart).combine_chunks())


def test_haystack_style_may_change_stop_words_but_never_answers(
    config: AugmentConfig, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    style = replace(config, style="haystack", candidates=5)
    made = squad.from_table(Augmenter(style, neighbours)(squad.to_table(originals))[0])
    assert made[:: 1 + COPIES] == originals

    def stop_words(paragraph: squad.Paragraph) -> list[str]:
        words = [paragraph.context[slice(*span)].lower() for span in word_spans(paragraph.context)]
        return [word for word in words if word in STOP_WORDS]

    sources = {each.paragraph_id: each for each in originals}
    assert any(stop_words(each) != stop_words(sources[each.source_id]) for each in made)
    for paragraph in made:
        for question in paragraph.questions:
            for answer in question.answers:
                end = answer.answer_start + len(answer.text)
                assert paragraph.context[answer.answer_start : end] == answer.text


def test_haystack_style_has_its_own_defaults() -> None:
    safe, haystack = (AugmentConfig(data="d", embeddings="e", style=s) for s in ("safe", "haystack"))
    assert (safe.candidates, safe.masked_share) == (15, 0.15)
    assert (haystack.candidates, haystack.masked_share) == (20, 0.0)


class Forgetful:
    """A teacher that finds every answer in the originals, and in copies those of odd-numbered questions."""

    def found(self, paragraphs: list[squad.Paragraph]) -> list[list[bool | None]]:
        return [
            [(bool(n % 2) or not each.copy) if q.answers else None for n, q in enumerate(each.questions)]
            for each in paragraphs
        ]


@pytest.mark.parametrize("keep", [False, True])
def test_questions_that_the_teacher_no_longer_answers_are_counted_and_left_out_when_asked(
    config: AugmentConfig, neighbours: str, originals: list[squad.Paragraph], keep: bool
) -> None:
    asked = replace(config, teacher="t", keep_if_teacher_agrees=keep)
    augmenter = Augmenter(config, neighbours)
    augmenter.config, augmenter.agreement = asked, Forgetful()  # type: ignore[assignment]
    table, counts = augmenter(squad.to_table(originals))
    answerable = 2 * len(originals)
    assert (counts["originals_asked"], counts["originals_found"]) == (answerable, answerable)
    assert counts["copies_asked"] == answerable * COPIES
    assert counts["copies_found"] == answerable * COPIES / 2
    made = squad.from_table(table)
    assert made[:: 1 + COPIES] == originals
    left = 2 if keep else 3  # the unanswerable question stays
    assert {len(paragraph.questions) for paragraph in made if paragraph.copy} == {left}
    assert counts["questions_left_out"] == (answerable * COPIES / 2 if keep else 0)


def test_teacher_is_asked_for_gold_answers_only(tiny_bert: str, originals: list[squad.Paragraph]) -> None:
    reader = Reader.from_pretrained(tiny_bert, device="cpu")
    found = Agreement(reader).found(originals)
    assert [[f is None for f in row] for row in found] == [
        [not question.answers for question in paragraph.questions] for paragraph in originals
    ]
    # What the model says is right by definition.
    first = originals[0]
    said = reader.answer(first.questions[0].question, first.context, threshold=1.0)[0]
    gold = squad.GoldAnswer(text=said.answer or "", answer_start=said.start)
    sure = replace(first, questions=(replace(first.questions[0], answers=(gold,)),))
    assert Agreement(reader).found([sure]) == [[True]]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"embeddings": None}, "nothing proposes words"),
        ({"embeddings": None, "masked_lm": "none"}, "nothing proposes words"),
        ({"keep_if_teacher_agrees": True}, "needs a teacher"),
        ({"masked_share": 1.5}, r"masked_share is 1.5; it must lie in \[0, 1\]"),
        ({"candidates": 0}, "candidates is 0"),
    ],
)
def test_config_that_cannot_be_is_refused(
    config: AugmentConfig, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        replace(config, **changes)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_all_copies_in_one_squad_file_have_unique_ids_and_the_originals_first(
    proposing: AugmentConfig, tiny_bert: str, originals: list[squad.Paragraph], tmp_path: Path
) -> None:
    target = tmp_path / "all.json"
    config = replace(proposing, squad_json=str(target), teacher=tiny_bert, copies=2, rows_per_shard=3)
    report = augment(config, str(tmp_path / "out"))
    read = squad.read_squad(str(target))  # refuses repeated ids and answers that are elsewhere
    assert len(read) == report.copies == 3 * len(originals)
    assert [each.context for each in read[: len(originals)]] == [each.context for each in originals]
    assert sum(len(each.questions) for each in read) == report.questions
    assert report.teacher_found_in_originals is not None
    assert 0 <= report.teacher_found_in_originals <= 100
