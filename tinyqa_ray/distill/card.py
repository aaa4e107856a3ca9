"""The model card: README.md of a model folder as the hub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from tinyqa_ray.core.names import display_name, hub_id
from tinyqa_ray.distill.page import FIGURES_EXPLAINED, ModelFigures, comparison, known

# Without best_f1: its threshold was chosen on the questions that it is measured on.
_HUB_METRICS = {
    "exact": ("exact_match", "Exact Match"),
    "f1": ("f1", "F1"),
    "has_ans_exact": ("exact_match", "HasAns Exact Match"),
    "has_ans_f1": ("f1", "HasAns F1"),
    "no_ans_f1": ("f1", "NoAns F1"),
    "forced_f1": ("f1", "Forced F1"),
}
_LEARNED = {
    "labels": "the gold labels",
    "intermediate": "the teacher's attention and hidden states",
    "relations": "the teacher's self-attention relations (MiniLMv2)",
    "prediction": "the teacher's span logits",
}
_USE = """\
With `pip install tinyqa-ray`; texts of any length are read in overlapping windows:

```python
from tinyqa_ray import Reader, pipeline

folder = "path/of/this/folder"  # or its id on the hub
question, context = "Who proved it?", "Robert Boyle proved that air is necessary for combustion."

reader = Reader.from_pretrained(folder)
answer = reader.answer(question, context)[0]
print(answer.answer, answer.start, answer.end, answer.score)  # answer.answer is None where there is none

qa = pipeline("question-answering", model=folder)  # as in transformers before 5.3
print(qa(question=question, context=context, handle_impossible_answer=True))
```

With transformers alone, for texts of one window:

```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder = "path/of/this/folder"  # or its id on the hub
question, context = "Who proved it?", "Robert Boyle proved that air is necessary for combustion."

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder)
window = tokenizer(
    question, context, truncation="only_second", max_length=MAX_SEQ_LEN,
    return_offsets_mapping=True, return_tensors="pt",
)
offsets = window.pop("offset_mapping")[0].tolist()
outside = torch.tensor([sequence != 1 for sequence in window.sequence_ids(0)])
with torch.inference_mode():
    logits = model(**window)
start, end = logits.start_logits[0], logits.end_logits[0]
null_score = start[0] + end[0]
spans = start.masked_fill(outside, -torch.inf)[:, None] + end.masked_fill(outside, -torch.inf)
spans = spans.masked_fill(torch.ones_like(spans, dtype=torch.bool).tril(-1), -torch.inf)
first, last = divmod(int(spans.argmax()), len(spans))
print(context[offsets[first][0] : offsets[last][1]] if spans.max() > null_score else None)
```"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """All that `model_card` says. Paths may be those of this machine: only their telling end is shown."""

    name: str
    student: str
    """What the training started from: hub id or folder."""
    model: ModelFigures
    """The model of the card; its ``figures`` are empty when it was not measured."""
    max_seq_len: int
    """Longest window of the training, in tokens."""
    recipe: Mapping[str, object]
    """The config's fields that decide the result."""
    data: tuple[str, ...] = ()
    """What the model learned from: hub ids (``rajpurkar/squad_v2:train``), files or folders."""
    teachers: tuple[str, ...] = ()
    dev: str | None = None
    """Data on which the models were measured."""
    compared: tuple[ModelFigures, ...] = ()
    """Figures of the teachers and the baseline on the same data."""
    threshold: float | None = None
    """No-answer threshold fitted for the model; None when it is the default."""
    hardware: tuple[tuple[str, str], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    language: str = "en"
    license: str | None = None
    """The hub's name of the license (``apache-2.0``); None, when unknown, leaves it out."""


def model_card(card: ModelCard) -> str:
    """Return the text of README.md: YAML for the hub, with the figures as ``model-index``, then Markdown."""
    sections = (
        ("How to use it", _USE.replace("MAX_SEQ_LEN", str(card.max_seq_len))),
        ("Figures", _figures(card)),
        ("Recipe", _markdown([("field", "value"), *((k, _text(v)) for k, v in card.recipe.items())])),
        ("Data and teachers", _sources(card)),
        (
            "Hardware and versions",
            _markdown([("what", "which"), *card.hardware, *card.versions.items()]),
        ),
        ("Limits", _limits(card)),
    )
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections)
    return f"---\n{_front_matter(card)}\n---\n\n# {card.name}\n\n{_what(card)}\n\n{body}\n"


def _front_matter(card: ModelCard) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    measured: dict[str, Any] = {}
    if card.dev is not None:
        name, split = hub_id(card.dev) or (display_name(card.dev), None)
        results = [
            EvalResult(
                task_type="question-answering",
                task_name="Question Answering",
                dataset_type=name,
                dataset_name=name,
                dataset_split=split,
                metric_type=kind,
                metric_name=metric,
                metric_value=round(value, 4),
            )
            for key, (kind, metric) in _HUB_METRICS.items()
            if (value := card.model.figures.get(key)) is not None and isfinite(value)
        ]
        measured = {"model_name": card.name, "eval_results": results} if results else {}
    start = hub_id(card.student)
    hub_data = [found[0] for source in card.data if (found := hub_id(source))]
    data = ModelCardData(
        language=card.language,
        license=card.license,
        library_name="transformers",
        pipeline_tag="question-answering",
        base_model=start[0] if start else None,
        datasets=list(dict.fromkeys(hub_data)) or None,
        tags=["question-answering", *(["distillation"] if card.teachers else []), "tinyqa-ray"],
        **measured,
    )
    return data.to_yaml()


def _what(card: ModelCard) -> str:
    size = "" if card.model.parameters is None else f", with {card.model.parameters:,} parameters"
    objective = card.recipe.get("objective", ())
    names = [objective] if isinstance(objective, str) else objective
    assert isinstance(names, Iterable)
    learned = " and ".join(_LEARNED.get(str(name), str(name)) for name in names)
    return (
        f"A model for extractive question answering{size}: it marks the answer to a question in a text, or "
        f"says that the text holds none. It started from `{display_name(card.student)}`"
        + (f" and learned {learned}" if learned else "")
        + "; made with tinyqa-ray."
    )


def _figures(card: ModelCard) -> str:
    if card.dev is None or not any(map(known, card.model.figures.values())):
        return "Not measured: the run was given no dev questions."
    explained = f"On `{display_name(card.dev)}`. {FIGURES_EXPLAINED}"
    if card.recipe.get("publish") == "best":
        explained += " The model is the best of its run on these questions, which flatters it too."
    return f"{_markdown(comparison((card.model, *card.compared)))}\n\n{explained}"


def _limits(card: ModelCard) -> str:
    if card.threshold is None:
        threshold = "The no-answer threshold is the default, 0.5, and was not fitted"
    else:
        threshold = f"The no-answer threshold is {card.threshold:.4f}, fitted on other data"
    return (
        f"- Trained on windows of up to {card.max_seq_len} tokens. Longer texts need overlapping windows, as "
        "the reader above makes them.\n"
        f"- Language: {card.language}. Answers are spans of the text, and only as right as the text is.\n"
        f"- {threshold}. On other texts fit it anew: `tinyqa evaluate --model FOLDER --data test.json "
        "--fit-threshold held_out.json --output OUT`."
    )


def _sources(card: ModelCard) -> str:
    named = {"Learned from": card.data, "Teachers": card.teachers, "Measured on": (card.dev,)}
    lines = []
    for label, sources in named.items():
        told = ", ".join(f"`{display_name(source)}`" for source in sources if source is not None)
        lines.append(f"- {label}: {told or 'none'}")
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, str):
        return display_name(value) if "/" in value or "\\" in value else value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return "–" if value is None else str(value)


def _markdown(table: Iterable[Sequence[str]]) -> str:
    rows = [[re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in row] for row in table]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
