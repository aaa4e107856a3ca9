"""The page of an augmentation: how much changed, what a teacher still finds, texts before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tinyqa_ray.augment.rewriting import word_spans
from tinyqa_ray.core import html
from tinyqa_ray.datasets import squad


def augmentation_html(title: str, figures: Sequence[tuple[str, str, str]], pairs: Sequence[Pair]) -> str:
    """Make the page.

    Args:
        title: plain text.
        figures: name, value and explanation of each card.
        pairs: originals, each with one of its copies.
    """
    shown = "\n".join(_example(original, copy) for original, copy in pairs)
    return html.page(title, f"{html.cards(figures)}\n<h2>Before and after</h2>\n{shown}")


Pair = tuple[squad.Paragraph, squad.Paragraph]


def _example(original: squad.Paragraph, copy: squad.Paragraph) -> str:
    before, after = word_spans(original.context), word_spans(copy.context)
    # Words are replaced one for one; if a candidate had two words, nothing would be marked.
    pairs = list(zip(before, after, strict=True)) if len(before) == len(after) else []
    changed = [(b, a) for b, a in pairs if original.context[slice(*b)] != copy.context[slice(*a)]]
    questions = "".join(
        f"<li>{escape(question.question)} <span class='tag'>{escape(_answer(question))}</span></li>"
        for question in copy.questions
    )
    return (
        f"<article><h3>{escape(copy.paragraph_id)}</h3>"
        f"<p>{_marked(original.context, [b for b, _ in changed])}</p>"
        f"<p>{_marked(copy.context, [a for _, a in changed])}</p><ul>{questions}</ul></article>"
    )


def _answer(question: squad.Question) -> str:
    if question.answers:
        return question.answers[0].text
    return "not labelled" if question.unlabelled else "no answer"


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    pieces, done = [], 0
    for start, end in spans:
        pieces += [escape(text[done:start]), f"<mark>{escape(text[start:end])}</mark>"]
        done = end
    return "".join([*pieces, escape(text[done:])])
