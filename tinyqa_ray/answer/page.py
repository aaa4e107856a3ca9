"""The page of an answering stage: counts, scores, the slowest documents, and examples."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.notes import Example, Notes
from tinyqa_ray.answer.plan import Plan
from tinyqa_ray.answer.report import AnswerReport
from tinyqa_ray.answer.rows import BINS
from tinyqa_ray.answer.where import of_document
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import html, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import tables
from tinyqa_ray.corpus.files import Texts
from tinyqa_ray.documents import Box, marked_picture

_EXAMPLES = 8
_SLOWEST = 10
_AROUND = 400
"""Characters shown on either side of an answer."""


def answers_html(
    config: AnswerConfig,
    report: AnswerReport,
    counts: dict[str, float],
    notes: Sequence[Notes],
    corpus: Corpus,
    cut: Plan,
) -> str:
    """Make the page.

    Args:
        config: configuration of the stage.
        report: what became of the questions.
        counts: sums over all units; ``score-00`` and so on are the bins of the histogram.
        notes: notes of all units.
        corpus: files from which the texts of the examples are read.
        cut: the plan, which says where each file of documents ends.
    """
    asked = max(report.questions, 1)
    cards = [
        ("questions", f"{report.questions:,}", _of(report)),
        ("answered", f"{report.answered / asked:.1%}", f"{report.answered:,} questions"),
        ("no answer", f"{report.unanswered / asked:.1%}", f"{report.unanswered:,} questions"),
        ("errors", f"{report.errors:,}", f"and {report.unreadable_documents:,} unreadable documents"),
        ("pairs asked", f"{report.pairs:,}", _saved(report)),
    ]
    parts = [html.cards(cards)]
    if report.answered:
        scores = [counts.get(f"score-{place:02d}", 0.0) for place in range(BINS)]
        parts.append("<h2>Scores of the best answers</h2>" + _histogram(scores))
    if slow := _slowest(notes):
        caption = '<p class="muted">Time of a unit of work, shared out by the characters read.</p>'
        parts.append("<h2>Slowest documents</h2>" + caption + html.table(slow, _SLOW_HEADER))
    if examples := _examples(notes):
        parts.append("<h2>Examples</h2>" + "\n".join(_example(each, corpus, cut) for each in examples))
    return html.page(f"Answers of {config.model.rstrip('/').rsplit('/', 1)[-1]}", "\n".join(parts))


def _of(report: AnswerReport) -> str:
    if not report.pages:
        return f"of {report.documents:,} documents"
    without = f", {report.pages_without_text:,} without text" if report.pages_without_text else ""
    return f"of {report.documents:,} documents; {report.pages:,} pages{without}"


def _saved(report: AnswerReport) -> str:
    if report.pairs_saved is None:
        return "of a question and a document"
    saved = f"{report.pairs_saved:.1%} of all pairs with {report.passages:,} passages saved"
    if report.own_document_selected is not None:
        saved += f"; own document selected for {report.own_document_selected:.1%}"
    return saved


def _histogram(counts: Sequence[float]) -> str:
    with html.plot_style():
        figure = Figure()
        axes = figure.subplots()
        edges = np.arange(BINS) / BINS
        axes.bar(edges, counts, width=0.9 / BINS, align="edge", color=html.BLUE)
        axes.set_xlim(0, 1)
        axes.set_xlabel("score")
        axes.set_ylabel("questions")
        drawn = html.figure_svg(figure, "histogram of scores")
    return html.captioned(drawn, "How likely the model finds the answer, compared with no answer.")


_SLOW_HEADER = ("document", "characters read", "seconds")


def _slowest(notes: Sequence[Notes]) -> list[tuple[str, str, str]]:
    found: dict[str, tuple[int, float]] = {}
    for note in notes:
        for name, characters in note.slowest:
            before = found.get(name, (0, 0.0))
            seconds = note.seconds * characters / max(note.characters, 1)
            found[name] = (before[0] + characters, before[1] + seconds)
    most = heapq.nlargest(_SLOWEST, found.items(), key=lambda item: item[1][1])
    return [(name, f"{characters:,}", f"{seconds:.2f}") for name, (characters, seconds) in most]


def _examples(notes: Sequence[Notes]) -> list[Example]:
    """Examples of answered and of unanswered questions, spread over the whole corpus."""
    every = [example for note in notes for example in note.examples]
    shown = []
    for answered, most in ((True, _EXAMPLES - 2), (False, 2)):
        some = [each for each in every if (each.answer is not None) == answered]
        shown += some[:: max(1, len(some) // most)][:most]
    return shown


def _example(example: Example, corpus: Corpus, cut: Plan) -> str:
    file = corpus.documents[int(np.searchsorted(cut.last_rows, example.row))]
    text = str(tables.documents_at(file, [example.row])["text"][0].as_py())
    begin, until = _around(text, example)
    passage = html.marked(text[begin:until], example.start - begin, example.end - begin)
    before = "… " if begin and not text.endswith("\n\n", 0, begin) else ""
    after = " …" if until < len(text) and not text.startswith("\n\n", until) else ""
    said = "no answer" if example.answer is None else escape(example.answer)
    of = f"of {escape(example.document_id)}" if example.document_id is not None else "in any document"
    picture = ""
    if corpus.texts and example.answer is not None:
        places = of_document(corpus.texts, example.row)
        number = places.page(example.start)
        of += f", page {number}" if number is not None else ""
        if boxes := places.boxes(example.start, example.end):
            picture = _picture(corpus.texts, example, boxes)
    return (
        f"<article><h3>{escape(example.question)}</h3><p><span class='tag'>{said}</span> "
        f"<span class='muted'>{of}, score {example.score:.3f}</span></p>"
        f"<p class='passage'>{before}{passage}{after}</p>{picture}{_places(example)}</article>"
    )


def _places(example: Example) -> str:
    """The places that say an answer, if there are several: a line with the sentence for each."""
    if example.places_in_all < 2:
        return ""
    lines = []
    for place in example.places:
        first = place["start"] - place["sentence_start"]
        said = html.marked(place["sentence"], first, first + len(place["answer"]))
        page = f", page {place['page']}" if place["page"] is not None else ""
        name = escape(place["document_id"] or "")
        where = f"{name}{page}, characters {place['start']}-{place['end']}, score {place['score']:.3f}"
        lines.append(f"<li dir='auto'>{said} <span class='muted'>{where}</span></li>")
    more = example.places_in_all - len(lines)
    rest = f"<p class='muted'>and {more:,} more</p>" if more else ""
    return f"<h4>{example.places_in_all:,} places</h4><ol>{''.join(lines)}</ol>{rest}"


def _picture(texts: Texts, example: Example, boxes: Sequence[Box]) -> str:
    """The page with the answer marked; nothing if its file is gone by now."""
    name = str(example.document_id)
    try:
        drawn = marked_picture(storage.read_bytes(storage.join(texts.folder, name)), boxes)
    except InputError:
        return ""
    told = escape(f"page {boxes[0].page} of {name}, the answer marked", quote=True)
    return f"<p><img src='{drawn}' alt='{told}' style='max-width: 100%; border: 1px solid var(--line)'></p>"


def _around(text: str, example: Example) -> tuple[int, int]:
    """Where the paragraph of an answer begins and ends, or in a long one, what is near it."""
    begin, until = max(0, example.start - _AROUND), min(len(text), example.end + _AROUND)
    if example.answer is not None:
        before, after = text.rfind("\n\n", begin, example.start), text.find("\n\n", example.end, until)
        begin = before + 2 if before >= 0 else begin
        until = after if after >= 0 else until
    return begin, until
