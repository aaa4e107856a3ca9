from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from tinyqa_ray.configs import GatherConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.squad import Paragraph, Question
from tinyqa_ray.gather import gather
from tinyqa_ray.gather.stage import HELD_OUT
from tinyqa_ray.gather.unanswerable import ELSEWHERE
from tinyqa_ray.models import hub
from tinyqa_ray.reader import Answer, Reader


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(tiny.squad_document()))
    return str(path)


def write_other(path: Path, **changes: Any) -> str:
    """One more article, of two paragraphs."""
    rows = [
        ("Rye bread is baked at dawn.", {"text": "at dawn", "answer_start": 19}),
        ("Owls hunt at night.", {"text": "at night", "answer_start": 10}),
    ]
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": f"o{n}", "question": f"When, {n}?", "is_impossible": False, "answers": [answer]}],
        }
        for n, (context, answer) in enumerate(rows)
    ]
    paragraphs[0]["qas"][0] |= changes
    path.write_text(json.dumps({"data": [{"title": "Others", "paragraphs": paragraphs}]}))
    return str(path)


def write_passages(folder: Path, texts: list[str]) -> tuple[str, str]:
    """Files of passages, and of one question to each."""
    passages, asked = folder / "passages.jsonl", folder / "asked.jsonl"
    passages.write_text(
        "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    )
    rows = [{"id": f"q{n}", "question": "When?", "document_id": str(n)} for n in range(len(texts))]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(passages), str(asked)


def questions(paragraphs: list[Paragraph]) -> dict[str, Question]:
    return {question.id: question for each in paragraphs for question in each.questions}


def test_sources_come_one_after_the_other_with_all_they_have(data: str, tmp_path: Path) -> None:
    other = write_other(tmp_path / "other.json")
    report = gather(GatherConfig(data=(data, other)), str(tmp_path / "out"))
    made = squad.read_squad(str(tmp_path / "out"))
    sources = [*squad.read_squad(data), *squad.read_squad(other)]
    assert [(each.context, each.questions) for each in made] == [(e.context, e.questions) for e in sources]
    assert len({each.paragraph_id for each in made}) == len(made) == report.paragraphs
    assert report.questions == len(questions(sources))
    assert report.made_unanswerable == report.unlabelled == report.held_out == 0


def test_data_of_the_hub_is_read_at_a_commit_that_the_run_keeps(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    known = squad.read_squad(data)

    def read(name: str) -> list[Paragraph]:
        asked.append(name)
        return known

    monkeypatch.setattr(hub, "commit", lambda name, *, is_data=False: "a" * 40 if is_data else None)
    monkeypatch.setattr(squad, "read_squad", read)
    gather(GatherConfig(data=("rajpurkar/squad_v2:train",)), str(tmp_path / "out"))
    assert asked == [f"rajpurkar/squad_v2@{'a' * 40}:train"]
    published = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert published["commits"] == {"rajpurkar/squad_v2:train": "a" * 40}


def test_run_again_it_is_finished_and_the_same(data: str, tmp_path: Path) -> None:
    config = GatherConfig(data=(data,), made_unanswerable=0.5, questions_per_paragraph=2)
    report = gather(config, str(tmp_path / "one"))
    assert gather(config, str(tmp_path / "one")) == report
    gather(config, str(tmp_path / "two"))
    (one,), (two,) = ((tmp_path / name / squad.FOLDER).glob("*.parquet") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_articles_held_out_are_in_their_file_alone(data: str, tmp_path: Path) -> None:
    titles = list(dict.fromkeys(each.title for each in squad.read_squad(data)))
    report = gather(GatherConfig(data=(data,), hold_out=(titles[0],)), str(tmp_path / "out"))
    kept, left = squad.read_squad(str(tmp_path / "out")), squad.read_squad(str(tmp_path / "out" / HELD_OUT))
    assert {each.title for each in left} == {titles[0]}
    assert {each.title for each in kept} == {*titles[1:]}
    assert report.held_out == len(questions(left))
    with pytest.raises(InputError, match="no article 'Nowhere' to hold out; there are"):
        gather(GatherConfig(data=(data,), hold_out=("Nowhere",)), str(tmp_path / "other"))


def test_texts_that_are_measured_on_never_come_in_under_any_title(data: str, tmp_path: Path) -> None:
    first, *others = squad.read_squad(data)
    dev = tmp_path / "dev.json"
    renamed = replace(first, title="Elsewhere", context=first.context + " One more sentence.")
    squad.write_json([renamed], str(dev))
    passages, asked = write_passages(tmp_path, [first.context, "Geese fly south in autumn, in a wedge."])
    config = GatherConfig(data=(data,), apart_from=(str(dev),), documents=passages, questions=asked)
    report = gather(config, str(tmp_path / "out"))
    made = squad.read_squad(str(tmp_path / "out"))
    assert [each.context for each in made] == [
        *(each.context for each in others),
        "Geese fly south in autumn, in a wedge.",
    ]
    assert report.repeated == 2


def test_what_is_held_out_does_not_come_back_under_another_title(data: str, tmp_path: Path) -> None:
    first, *_ = squad.read_squad(data)
    other = tmp_path / "other.json"
    ids = tuple(replace(each, id=f"again-{each.id}") for each in first.questions)
    squad.write_json([replace(first, title="Elsewhere", questions=ids)], str(other))
    report = gather(GatherConfig(data=(data, str(other)), hold_out=(first.title,)), str(tmp_path / "out"))
    assert first.context not in {each.context for each in squad.read_squad(str(tmp_path / "out"))}
    assert report.repeated == 1


def test_questions_that_a_teacher_answers_elsewhere_are_not_made_unanswerable(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = gather(GatherConfig(data=(data,), made_unanswerable=1.0), str(tmp_path / "every"))
    read: list[tuple[str, str]] = []

    class Teacher:
        """Answers every second question."""

        def answer_many(self, pairs: list[tuple[str, str]]) -> list[list[Answer]]:
            read.extend(pairs)
            found = [Answer("owl", 0.9, 0, 3, 0.1), Answer(None, 0.9, 0, 0, 0.9)]
            return [[found[n % 2]] for n in range(len(pairs))]

    monkeypatch.setattr(Reader, "from_pretrained", lambda model: {"some/model": Teacher()}[model])
    monkeypatch.setattr(hub, "commit", lambda name, *, is_data=False: None)
    config = GatherConfig(data=(data,), made_unanswerable=1.0, teacher="some/model")
    report = gather(config, str(tmp_path / "out"))
    assert len(read) == every.made_unanswerable > 1
    assert report.answered_by_teacher == (len(read) + 1) // 2
    assert report.made_unanswerable == len(read) // 2
    made = squad.read_squad(str(tmp_path / "out"))
    moved = {
        (question.question, each.context)
        for each in made
        for question in each.questions
        if question.id.endswith(ELSEWHERE)
    }
    assert moved == set(read[1::2])


def test_teacher_without_questions_to_read_is_refused() -> None:
    with pytest.raises(InputError, match="teacher reads the questions of made_unanswerable, which is 0"):
        GatherConfig(data=("d",), teacher="m")


def test_at_most_so_many_questions_of_a_paragraph_stay_in_their_order(data: str, tmp_path: Path) -> None:
    before = squad.read_squad(data)
    assert max(len(each.questions) for each in before) > 1
    gather(GatherConfig(data=(data,), questions_per_paragraph=1), str(tmp_path / "out"))
    after = squad.read_squad(str(tmp_path / "out"))
    for own, fewer in zip(before, after, strict=True):
        assert len(fewer.questions) == min(len(own.questions), 1)
        assert [each for each in own.questions if each in fewer.questions] == [*fewer.questions]


def test_made_questions_join_the_others_of_their_paragraph(data: str, tmp_path: Path) -> None:
    report = gather(GatherConfig(data=(data,), made_unanswerable=1.0), str(tmp_path / "out"))
    made = squad.read_squad(str(tmp_path / "out"))
    assert report.made_unanswerable > 0
    assert report.questions == len(questions(squad.read_squad(data))) + report.made_unanswerable
    assert len(questions(made)) == report.questions


def test_rewritten_questions_and_single_sentences_are_counted(data: str, tmp_path: Path) -> None:
    config = GatherConfig(data=(data,), rewritten=1.0, sentences_alone=1.0)
    report = gather(config, str(tmp_path / "out"))
    before, made = squad.read_squad(data), squad.read_squad(str(tmp_path / "out"))
    new = {*questions(made)} - {*questions(before)}
    assert len(new) == report.rewritten + report.of_sentences
    assert sum(name.endswith("-rewritten") for name in new) == report.rewritten > 0
    assert sum(name.endswith(("-alone", "-aside")) for name in new) == report.of_sentences > 0
    assert report.questions == len(questions(made))


def test_questions_of_a_corpus_come_with_their_passages(data: str, tmp_path: Path) -> None:
    documents, asked = tmp_path / "documents.jsonl", tmp_path / "questions.jsonl"
    documents.write_text('{"id": "d1", "text": "Owls."}\n{"id": "d2", "text": "Rye."}\n')
    asked.write_text('{"id": "q", "question": "What?", "document_id": "d2"}\n')
    config = GatherConfig(data=(data,), documents=str(documents), questions=str(asked))
    report = gather(config, str(tmp_path / "out"))
    *_, last = squad.read_squad(str(tmp_path / "out"))
    (question,) = last.questions
    assert (last.context, question.question) == ("Rye.", "What?")
    # Neither an answer nor the word that there is none.
    assert not question.answers
    assert not question.is_impossible
    assert report.unlabelled == 1
    asked.write_text('{"id": "q", "question": "What?", "document_id": "d3"}\n')
    with pytest.raises(InputError, match="document_id 'd3' is not in"):
        gather(config, str(tmp_path / "other"))
    asked.write_text('{"id": "q", "question": 7, "document_id": "d2"}\n')
    with pytest.raises(InputError, match="question is 7; it must be a text"):
        gather(config, str(tmp_path / "other"))


def test_unlabelled_questions_of_a_source_stay_so(data: str, tmp_path: Path) -> None:
    """Asked of another paragraph they would be called unanswerable, though nobody knows what they ask for."""
    other = write_other(tmp_path / "other.json", answers=[], is_impossible=False)
    report = gather(GatherConfig(data=(data, other), made_unanswerable=1.0), str(tmp_path / "out"))
    made = questions(squad.read_squad(str(tmp_path / "out")))
    assert made["o0"].unlabelled
    assert "o0-elsewhere" not in made
    assert "o1-elsewhere" in made
    assert report.unlabelled == 1


def test_what_cannot_be_gathered_is_refused(data: str, tmp_path: Path) -> None:
    (first, *_) = questions(squad.read_squad(data))
    same = write_other(tmp_path / "same.json", id=first)
    with pytest.raises(InputError, match="make ids unique"):
        gather(GatherConfig(data=(data, same)), str(tmp_path / "out"))
    with pytest.raises(InputError, match="there is nothing to gather"):
        GatherConfig(data=())
    with pytest.raises(InputError, match="must be a tuple"):
        GatherConfig(data=data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="documents and questions belong together"):
        replace(GatherConfig(data=(data,)), documents=data)
