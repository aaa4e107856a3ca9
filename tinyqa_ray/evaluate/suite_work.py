"""The work of a run of suites."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tinyqa_ray.configs import SuiteConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import suites
from tinyqa_ray.evaluate import measure, squad_metrics
from tinyqa_ray.evaluate.suite_page import suites_html
from tinyqa_ray.evaluate.suite_report import FIGURES, Row, SuiteReport, table
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader

MEASURED = "measured"
"""Folder of the files of models and parts."""


def work(
    config: SuiteConfig,
    settings: Sequence[ModelSettings],
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> SuiteReport:
    """Measure what is not measured yet, write the table and the page, and return the table."""
    import torch

    quiet_models()
    torch.set_num_threads(config.threads or cores(1))
    readers: dict[str, Reader] = {}
    rows: list[Row] = []
    questions, seen = 0, set()
    # A part is read once, and every model is asked its questions, so that one part is held at a time.
    for part in suites.parts(config.suite, config.suite_folder):
        key = f"{part.suite}-{part.name}"
        if key in seen:
            raise InputError(f"{config.suite_folder}: two files are called {part.name}; rename one")
        seen.add(key)
        asked = measure.labelled(part.paragraphs, key, part.accepted)
        if config.max_questions is not None:
            asked = measure.spread(asked, config.max_questions)
        questions += len(asked)
        for number, (model, own) in enumerate(zip(config.models, settings, strict=True)):
            path = stage.path(MEASURED, f"{number:02d}-{re.sub(r'[^A-Za-z0-9._-]', '-', key)}.json")
            if storage.kind(path) == "absent":
                reader = readers.get(model) or readers.setdefault(model, _reader(config, model, own))
                found = _measured(reader, asked, config.max_answer_tokens, _noted(progress, model, key))
                head = {"model": model, "suite": part.suite, "part": part.name}
                storage.write_json(path, {**found, "row": {**head, **found["row"]}})
            rows.append(storage.read_json(path)["row"])
    made = SuiteReport(questions=questions, rows=table(rows))
    storage.write_json(stage.path("metrics.json"), {"questions": questions, "rows": made.rows})
    storage.write_atomic(stage.path("report.html"), suites_html(config, made).encode())
    return made


def _reader(config: SuiteConfig, model: str, settings: ModelSettings) -> Reader:
    return Reader.from_pretrained(model, settings=settings, window=config.window, cut_questions=True)


def _measured(
    reader: Reader,
    asked: Sequence[measure.Asked],
    max_answer_tokens: int,
    progress: stage_folder.Progress | None,
) -> dict[str, Any]:
    """What is written of one model and part: its row, the predictions and na_probs."""
    readings, seconds = measure.read(reader, asked, max_answer_tokens, progress)
    scored = measure.Scored.of(asked, readings)
    summary = scored.summary(reader.settings.no_answer_threshold)
    figures: dict[str, Any] = {
        name: getattr(summary, name) for name in FIGURES if not name.startswith("best_")
    }
    unanswerable = summary.no_ans_total > 0
    if unanswerable:
        official = squad_metrics.score(scored.per_question, scored.na_probs)
        figures.update({name: official[name] for name in ("best_exact", "best_f1")})
    else:
        exact, f1 = squad_metrics.squad1_score(measure.gold(asked), scored.predictions)
        figures.update(exact=exact, f1=f1, forced_exact=exact, forced_f1=f1, best_exact=None, best_f1=None)
    row = {
        "metrics": "squad2" if unanswerable else "squad1",
        "questions": len(asked),
        "questions_per_s": len(asked) / seconds,
        **figures,
    }
    return {"row": row, "predictions": scored.predictions, "na_probs": scored.na_probs}


def _noted(progress: stage_folder.Progress | None, model: str, key: str) -> stage_folder.Progress | None:
    return None if progress is None else lambda done, total: progress(done, total, note=f"{model} on {key}")
