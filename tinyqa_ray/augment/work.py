"""The work of the augmentation stage."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.augment.masked import MaskedCandidates
from tinyqa_ray.augment.neighbours import Neighbours, neighbour_table, whole_words
from tinyqa_ray.augment.page import Pair, augmentation_html
from tinyqa_ray.augment.report import AugmentReport
from tinyqa_ray.augment.vectors import read_vectors
from tinyqa_ray.configs import AugmentConfig, WindowConfig
from tinyqa_ray.core import shards, stage_folder, storage
from tinyqa_ray.core.cluster import connected, quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.engines.load import check_model
from tinyqa_ray.models import hub, pretrained

_EXAMPLES = 8


def work(
    config: AugmentConfig, stage: stage_folder.Stage, progress: stage_folder.Progress | None
) -> AugmentReport:
    """Write the copies that are not written yet, then the page; report what was made."""
    quiet_models()
    config = hub.pinned(config, stage, "masked_lm", "embeddings", "teacher", data=("data",))
    source = squad.read_squad(config.data)
    if any(paragraph.copy for paragraph in source):
        raise InputError(f"{config.data}: holds copies already; give the data that they were made from")
    _check(config)
    paragraphs, nearest = stage.path("_input.parquet"), stage.path("neighbours.parquet")
    if storage.kind(nearest) == "absent":
        shards.write_input(nearest, neighbours_of(config).to_table())
    shards.write_input(paragraphs, squad.to_table(source))
    plan = shards.cut([paragraphs], config.rows_per_shard, stage.path(squad.FOLDER), "parquet")
    options: dict[str, Any] = {
        "config": stage_folder.for_workers(config, "masked_lm", "teacher"),
        "neighbours": nearest,
    }
    computes = config.masked_lm is not None or config.teacher is not None
    workers = shards.Workers(
        actors=config.actors,
        num_gpus=config.num_gpus,
        threads=config.threads if computes else 1,
    )
    with connected():
        counts = shards.run(plan, Augmenter, options, workers, progress)
    files = [shard.target for shard in plan]
    if config.squad_json is not None:
        squad.write_json(_in_one_file(files), config.squad_json)
    made = _report(len(source), counts)
    storage.write_atomic(stage.path("report.html"), _page(config, made, files).encode())
    return made


def neighbours_of(config: AugmentConfig) -> Neighbours:
    """The nearest words of every word by cosine, from word vectors or from a model's input embeddings."""
    assert config.candidates is not None
    if config.word_vectors is not None:
        words, matrix = read_vectors(config.word_vectors, config.max_word_vectors)
        return neighbour_table(words, matrix, k=config.candidates)
    model = config.embeddings or config.masked_lm
    assert model is not None, "the config refuses to have no candidates at all"
    matrix = pretrained.input_embeddings(model)
    words, ids = whole_words(pretrained.load_tokenizer(model).get_vocab())
    return neighbour_table(words, matrix[np.array(ids)], k=config.candidates)


def _check(config: AugmentConfig) -> None:
    """Refuse unsuitable models before any work is done."""
    if config.masked_lm is not None:
        MaskedCandidates.load(
            config.masked_lm, device="cpu", k=1, masked_share=0.15, max_batch_tokens=1, seed=0
        )
    if config.teacher is not None:
        check_model(config.teacher, WindowConfig())


def _report(paragraphs: int, counts: dict[str, float]) -> AugmentReport:
    whole = {name: int(value) for name, value in counts.items()}

    def share(where: str) -> float | None:
        asked = whole.pop(f"{where}_asked", 0)
        found = whole.pop(f"{where}_found", 0)
        return 100 * found / asked if asked else None

    originals, copies = share("originals"), share("copies")
    return AugmentReport(
        paragraphs=paragraphs,
        teacher_found_in_originals=originals,
        teacher_found_in_copies=copies,
        **whole,
    )


def _in_one_file(files: list[str]) -> Iterator[squad.Paragraph]:
    """All paragraphs, originals before copies; ids of questions are made unique across copies."""
    for copies in (False, True):
        for file in files:
            for paragraph in squad.from_table(squad.read_table(file)):
                if (paragraph.copy > 0) == copies:
                    suffix = f"~{paragraph.copy}" if copies else ""
                    questions = tuple(
                        replace(question, id=f"{question.id}{suffix}") for question in paragraph.questions
                    )
                    yield replace(paragraph, questions=questions)


def _page(config: AugmentConfig, made: AugmentReport, files: list[str]) -> str:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f} %"

    share = 100 * made.words_replaced / made.words if made.words else None
    cards = [
        ("paragraphs", f"{made.copies:,}", f"{made.paragraphs:,} originals and their copies"),
        ("questions", f"{made.questions:,}", f"{made.questions_left_out:,} left out"),
        ("words replaced", percent(share), "of all words of the copies"),
        ("answers found in originals", percent(made.teacher_found_in_originals), "by the teacher, exactly"),
        ("answers found in copies", percent(made.teacher_found_in_copies), "if far fewer, the copies hurt"),
    ]
    source = config.masked_lm or config.word_vectors or config.embeddings
    return augmentation_html(f"Augmentation with {source}", cards, list(_examples(files)))


def _examples(files: list[str]) -> Iterator[Pair]:
    """Originals with their first copy, from the first file."""
    paragraphs = squad.from_table(squad.read_table(files[0])) if files else []
    originals = {each.source_id: each for each in paragraphs if each.copy == 0}
    firsts = (each for each in paragraphs if each.copy == 1)
    for copy in itertools.islice(firsts, _EXAMPLES):
        yield originals[copy.source_id], copy
