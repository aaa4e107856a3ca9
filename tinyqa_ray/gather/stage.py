"""SQuAD data from several sources → one training set, with questions made unanswerable."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tinyqa_ray.configs import GatherConfig
from tinyqa_ray.core import shards, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import sources
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.squad import Paragraph, Question
from tinyqa_ray.gather import unanswerable
from tinyqa_ray.gather.alone import of_single_sentences
from tinyqa_ray.gather.overlap import Overlap
from tinyqa_ray.gather.rewritten import rewritten
from tinyqa_ray.models import hub

HELD_OUT = "held-out.json"
"""File with the articles that are left out, within the stage's folder."""
_CORPUS = "corpus"
_READ_TOGETHER = 512
"""Questions that the teacher reads at once."""
_MADE = {
    "same-article": unanswerable.of_same_article,
    "most-similar": unanswerable.of_most_similar,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherReport:
    """What was gathered."""

    paragraphs: int
    questions: int
    """All questions, including those without answers."""
    unanswerable: int
    """Questions that are unanswerable in the sources."""
    made_unanswerable: int
    """Questions made unanswerable by asking another paragraph."""
    answered_by_teacher: int
    """Questions made so and not kept, since the teacher finds an answer in the other paragraph."""
    rewritten: int
    """Questions rewritten so that their paragraph no longer answers them."""
    of_sentences: int
    """Questions asked of single sentences, with and without an answer there."""
    unlabelled: int
    """Questions whose answers are not known."""
    held_out: int
    """Questions left out, to fit thresholds on."""
    repeated: int
    """Paragraphs and passages left out, since they repeat text that is held out or that must stay apart."""


def gather(config: GatherConfig, output: str, progress: stage_folder.Progress | None = None) -> GatherReport:
    """Put the sources together under ``output``: ``paragraphs/`` and perhaps ``held-out.json``.

    Raises:
        InputError: data or the teacher cannot be read, two sources have the same question id, or no source
            has a title that should be left out.
    """
    inputs = ("data", "documents", "questions", "apart_from", "teacher")
    with stage_folder.stage(output, config, inputs=inputs) as stage:
        if stage.finished:
            return stage.report(GatherReport)
        config = hub.pinned(config, stage, "teacher", data=("data", "apart_from"))
        kept, left_out = _parted(_sources(config), config.hold_out)
        elsewhere = _measured_on(config, left_out)
        own = [each for each in kept if each.context not in elsewhere]
        passages = list(_corpus(config))
        apart = [each for each in passages if each.context not in elsewhere]
        fewer = [_some_questions(each, config) for each in own]
        moved = list(_MADE[config.other_paragraph](fewer, config.made_unanswerable, config.seed))
        made = moved if config.teacher is None else _unanswered(moved, fewer, config.teacher, progress)
        changed = list(rewritten(fewer, config.rewritten, config.seed))
        alone = list(of_single_sentences(fewer, config.sentences_alone, config.seed))
        everything = [*_joined(fewer, [*made, *changed]), *alone, *apart]
        shards.write_input(stage.path(squad.FOLDER, "part-000000.parquet"), squad.to_table(everything))
        if left_out:
            squad.write_json(left_out, stage.path(HELD_OUT))
        if progress is not None:
            progress(len(everything), len(everything))
        return stage.publish(
            GatherReport(
                paragraphs=len(everything),
                questions=_count(everything),
                unanswerable=sum(question.is_impossible for each in fewer for question in each.questions),
                made_unanswerable=len(made),
                answered_by_teacher=len(moved) - len(made),
                rewritten=len(changed),
                of_sentences=_count(alone),
                unlabelled=sum(question.unlabelled for each in everything for question in each.questions),
                held_out=_count(left_out),
                repeated=len(kept) - len(own) + len(passages) - len(apart),
            )
        )


def _sources(config: GatherConfig) -> list[Paragraph]:
    """All paragraphs; with several sources, ids start with the source's number, so that they are unique."""
    found: list[Paragraph] = []
    origins: dict[str, str] = {}
    for number, data in enumerate(config.data):
        for each in squad.read_squad(data):
            if each.copy:
                raise InputError(f"{data}: holds augmented copies; gather the original data instead")
            for question in each.questions:
                if origins.setdefault(question.id, data) != data:
                    raise InputError(
                        f"question id {question.id!r} is in {origins[question.id]} and in {data}; "
                        "make ids unique"
                    )
            name = f"{number}:{each.paragraph_id}" if len(config.data) > 1 else each.paragraph_id
            found.append(replace(each, paragraph_id=name, source_id=name))
    return found


def _parted(
    paragraphs: Iterable[Paragraph], titles: Sequence[str]
) -> tuple[list[Paragraph], list[Paragraph]]:
    """The paragraphs to keep, and those with one of ``titles``."""
    both: tuple[list[Paragraph], list[Paragraph]] = ([], [])
    for each in paragraphs:
        both[each.title in titles].append(each)
    absent = [title for title in titles if title not in {each.title for each in both[1]}]
    if absent:
        known = sorted({each.title for each in both[0]})
        raise InputError(f"no article {absent[0]!r} to hold out; there are {', '.join(known[:30])}")
    return both


def _measured_on(config: GatherConfig, left_out: Sequence[Paragraph]) -> Overlap:
    """The texts that what is learned from must not repeat."""
    measured = itertools.chain.from_iterable(squad.read_squad(data) for data in config.apart_from)
    return Overlap(each.context for each in itertools.chain(left_out, measured))


def _unanswered(
    moved: Sequence[tuple[str, Question]],
    paragraphs: Sequence[Paragraph],
    teacher: str,
    progress: stage_folder.Progress | None,
) -> list[tuple[str, Question]]:
    """Questions moved to other paragraphs in which a teacher, too, finds no answer."""
    from tinyqa_ray.reader import Reader

    reader = Reader.from_pretrained(teacher)
    contexts = {each.paragraph_id: each.context for each in paragraphs}
    found: list[tuple[str, Question]] = []
    for first in range(0, len(moved), _READ_TOGETHER):
        some = moved[first : first + _READ_TOGETHER]
        answers = reader.answer_many([(question.question, contexts[place]) for place, question in some])
        found += [each for each, (best,) in zip(some, answers, strict=True) if best.answer is None]
        if progress is not None:
            progress(first + len(some), len(moved))
    return found


def _some_questions(paragraph: Paragraph, config: GatherConfig) -> Paragraph:
    most = config.questions_per_paragraph
    if most is None or len(paragraph.questions) <= most:
        return paragraph
    # Seeded by the paragraph's own id, so that the choice does not depend on the other sources.
    rng = np.random.default_rng([config.seed, *paragraph.source_id.encode()])
    chosen = sorted(rng.choice(len(paragraph.questions), most, replace=False))
    return replace(paragraph, questions=tuple(paragraph.questions[place] for place in chosen))


def _joined(paragraphs: Sequence[Paragraph], made: Iterable[tuple[str, Question]]) -> Iterator[Paragraph]:
    more: dict[str, list[Question]] = {}
    for paragraph_id, question in made:
        more.setdefault(paragraph_id, []).append(question)
    for each in paragraphs:
        yield replace(each, questions=(*each.questions, *more.get(each.paragraph_id, ())))


def _corpus(config: GatherConfig) -> Iterator[Paragraph]:
    """The passages of ``documents`` with their questions, which have no answers."""
    if config.documents is None or config.questions is None:
        return
    asked: dict[str, list[Question]] = {}
    for row in _rows(config.questions, "id", "question", "document_id"):
        asked.setdefault(row["document_id"], []).append(Question(row["id"], row["question"], False, ()))
    for row in _rows(config.documents, "id", "text"):
        if questions := asked.pop(row["id"], None):
            name = f"{_CORPUS}:{row['id']}"
            yield Paragraph(
                paragraph_id=name,
                title=_CORPUS,
                context=row["text"],
                questions=tuple(questions),
                source_id=name,
            )
    if asked:
        raise InputError(
            f"{config.questions}: document_id {next(iter(asked))!r} is not in {config.documents}"
        )


def _rows(path: str, *names: str) -> Iterator[dict[str, str]]:
    """Rows of documents or questions; the columns ``names`` must be texts."""
    for source in sources.find(path):
        columns = [source.column((name,)) for name in names]
        for where, values in source.rows(columns):
            for name in columns:
                if not isinstance(values.get(name), str):
                    raise InputError(f"{where}: {name} is {values.get(name)!r}; it must be a text")
            yield values


def _count(paragraphs: Iterable[Paragraph]) -> int:
    return len(list(itertools.chain.from_iterable(each.questions for each in paragraphs)))
