"""Exports of annotation tools → rows in the hub's form; an entry of unclear meaning is refused.

The annotation tools of Haystack and cdQA write SQuAD JSON themselves. Label Studio's template *Question
Answering* writes tasks (``JSON``) or one row per task (``JSON-MIN``), with a ``text``, a ``question``, and
spans of the text. doccano writes a ``text`` with labelled spans, and the question as metadata ``question``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tinyqa_ray.core.errors import InputError

_SPANS = ("label", "labels", "entities", "answer")
"""Where doccano (the first three) and Label Studio's JSON-MIN keep the spans of a text."""
_OURS = ("paragraphs", "qas", "context")
_SAY = "say by an is_impossible of true that it has no answer, by one of false that nobody has answered it"


def as_row(value: Any, place: str) -> Any:
    """Convert a task of Label Studio or a text of doccano to ``id, title, context, question, answers``.

    Args:
        value: an entry of a JSON list, or a line of a file.
        place: where the entry stands, for messages.

    Returns:
        the row, or ``value`` itself if it is neither. ``answers`` is None if nobody has answered.

    Raises:
        InputError: the entry has no question, its labels are not spans of its text, or it has no label
            and does not say whether the question has no answer or was left unanswered.
    """
    if not isinstance(value, dict) or any(name in value for name in _OURS):
        return value
    if isinstance(value.get("data"), dict):
        name = next((name for name in ("annotations", "completions") if name in value), None)
        return value if name is None else _task(value, value[name], place)
    found = [name for name in _SPANS if isinstance(value.get(name), list)]
    if isinstance(value.get("text"), str) and found:
        return _row(value, value.get("id"), [value[name] for name in found], place)
    return value


def _task(task: dict[str, Any], annotations: Any, place: str) -> dict[str, Any]:
    """The row of a task of Label Studio; skipped annotations do not count."""
    data = {"text": task["data"].get("context"), **task["data"]}
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise InputError(f"{place}: its annotations are not a list of objects; export it as JSON")
    done = [each.get("result") for each in annotations if not each.get("was_cancelled")]
    return _row(data, task["data"].get("id", task.get("id")), done, place)


def _row(data: dict[str, Any], number: Any, annotated: list[Any], place: str) -> dict[str, Any]:
    """A row from a text, its question, and the spans of each annotator."""
    text, question = data.get("text"), data.get("question")
    if not isinstance(text, str) or not isinstance(question, str):
        raise InputError(
            f"{place}: is an annotated text without a text 'question'; give each one its question under that "
            "name (as data in Label Studio, as metadata in doccano)"
        )
    row = {"id": number, "title": data.get("title"), "context": text, "question": question, "answers": None}
    said = row["is_impossible"] = data.get("is_impossible")
    answers = [_answers(spans, text, place) for spans in annotated]
    if not all(answers) and any(answers):
        raise InputError(f"{place}: one annotator gave it an answer, another none; keep one of the two")
    if annotated and not any(answers) and said is None:
        raise InputError(f"{place}: no span is labelled; {_SAY}")
    if any(answers):
        row["answers"] = [answer for each in answers for answer in each]
    return row


def _answers(spans: Any, text: str, place: str) -> list[dict[str, Any]]:
    if not isinstance(spans, list):
        raise InputError(f"{place}: its labels are no list of spans; label spans of its text")
    found, names = [], set()
    for span in spans:
        start, end, said, name = _span(span)
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise InputError(
                f"{place}: has a label that is no span of its text (start {start!r}, end {end!r}); label "
                "spans of a plain text, and leave out all else"
            )
        names.add(name)
        found.append({"text": text[start:end] if said is None else said, "answer_start": start})
    if len(names) > 1:
        raise InputError(
            f"{place}: its spans have labels {', '.join(sorted(names))}; keep only that of answers"
        )
    return found


def _span(span: Any) -> tuple[Any, Any, Any, str]:
    """Start, end, text (each None if missing) and label of a span."""
    if isinstance(span, list):  # doccano's form
        return (*span[:2], None, str(span[2])) if len(span) == 3 else (None, None, None, "")
    if not isinstance(span, dict):
        return None, None, None, ""
    value = span["value"] if isinstance(span.get("value"), dict) else span
    names = value.get("labels", value.get("label"))
    label = (
        ", ".join(map(str, names)) if isinstance(names, Iterable) and not isinstance(names, str) else names
    )
    ends = (value.get(name, value.get(f"{name}_offset")) for name in ("start", "end"))
    return (*ends, value.get("text"), str(label))  # type: ignore[return-value]
