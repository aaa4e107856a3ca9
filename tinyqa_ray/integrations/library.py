"""What the tools of ``integrations.mcp`` do: texts, files and corpora → answers with their places."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tinyqa_ray.configs import McpConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus.bm25 import best_passages
from tinyqa_ray.corpus.indexed import IndexedCorpus, Passage
from tinyqa_ray.corpus.sources import fault
from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.corpus.texts import index_of
from tinyqa_ray.documents import Places, UnreadableError, read_isolated
from tinyqa_ray.integrations.evidence import Found, FoundAnswer, MarkedBox, Place, Unreadable, place
from tinyqa_ray.reader import Reader, evidence

_MOST_ANSWERS = 100
_MOST_FILES = 100


class Library:
    """The model, and what it may be asked of."""

    def __init__(self, config: McpConfig) -> None:
        """Load the model, and open the folders.

        Raises:
            InputError: no such model or folder, or a folder is of another kind.
        """
        self.config = config
        if config.files is not None and not Path(config.files).is_dir():
            raise InputError(f"{config.files}: no such folder; give --files a local one")
        self.corpus = IndexedCorpus(config.index) if config.index is not None else None
        self.answered = Answered(config.answers) if config.answers is not None else None
        self.reader = Reader.from_pretrained(
            config.model, settings=config.settings, precision=config.precision
        )
        self._lock = threading.Lock()  # tools are called in several threads

    def ask_texts(self, question: str, texts: Sequence[str], top_k: int = 3) -> Found:
        """Answer from texts, which are numbered."""
        passages = [
            Passage(document_id=str(number), text=text, start=0, places=Places(()))
            for number, text in enumerate(texts)
        ]
        return self._asked(question, passages, top_k)

    def ask_files(self, question: str, paths: Sequence[str], top_k: int = 3) -> Found:
        """Answer from files of the folder, by their paths within it."""
        if len(paths) > _MOST_FILES:
            raise InputError(f"{len(paths)} paths; give at most {_MOST_FILES}")
        read = [self._read(path) for path in paths]
        passages = [each for each in read if isinstance(each, Passage)]
        unreadable = [each for each in read if isinstance(each, Unreadable)]
        return self._asked(question, passages, top_k, unreadable)

    def ask_corpus(self, question: str, top_k: int = 3) -> Found:
        """Answer from the passages of the index that share most with the question."""
        assert self.corpus is not None
        return self._asked(question, self.corpus.best(question, self.config.candidates), top_k)

    def _read(self, path: str) -> Passage | Unreadable:
        """A file as a whole."""
        try:
            document = read_isolated(path, self._bytes(path), self.config.document_limits)
        except UnreadableError as error:
            return Unreadable(document=path, error=f"the file {error}")
        except InputError as error:
            return Unreadable(document=path, error=str(error))
        if wrong := fault(document.text):
            return Unreadable(document=path, error=f"the text {wrong}")
        return Passage(document_id=path, text=document.text, start=0, places=document.places)

    def _bytes(self, path: str) -> bytes:
        assert self.config.files is not None
        folder = Path(self.config.files).resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise InputError(f"{path}: is outside of the folder whose files may be asked")
        if not file.is_file():
            raise InputError(f"{path}: no such file")
        limit = self.config.document_limits.max_file_bytes
        if file.stat().st_size > limit:
            raise UnreadableError(f"has {file.stat().st_size} bytes, over the limit of {limit}")
        return storage.read_bytes(str(file))

    def _asked(
        self,
        question: str,
        passages: Sequence[Passage],
        top_k: int,
        unreadable: Sequence[Unreadable] = (),
    ) -> Found:
        if not 1 <= top_k <= _MOST_ANSWERS:
            raise InputError(f"top_k is {top_k}; it must be from 1 to {_MOST_ANSWERS}")
        found = Found(question=question, answers=[], no_answer=1.0, unreadable=list(unreadable))
        if not passages:
            return found
        numbers = [str(number) for number in range(len(passages))]
        with self._lock:
            asked = self.reader.evidence(question, [each.text for each in passages], document_ids=numbers)
        found.no_answer = min((each.na_prob for each in asked if each.error is None), default=1.0)
        if asked[0].answer is None:
            return found
        # Passages of a document overlap: a place that two of them show counts once.
        held: dict[tuple[str, int, int], tuple[evidence.Place, Place]] = {}
        for each in (each for answer in asked for each in answer.places):
            own = passages[int(str(each.document_id))]
            where = place(own.document_id, own.text, each.start, each.end, own.places, own.start)
            key = (where.document, where.start, where.end)
            if key not in held or held[key][0].score < each.score:
                held[key] = replace(each, document_id=where.document, start=key[1], end=key[2]), where
        for answer in evidence.gathered(
            (each for each, _ in held.values()),
            na_prob=found.no_answer,
            settings=self.reader.settings,
            top_k=top_k,
        ):
            assert answer.answer is not None
            places = [held[str(each.document_id), each.start, each.end][1] for each in answer.places]
            found.answers.append(FoundAnswer(answer=answer.answer, score=answer.score, places=places))
        return found


class Answered:
    """The answers in an output of ``tinyqa answer``, looked up by their questions; held in memory."""

    def __init__(self, folder: str) -> None:
        """Read the answers.

        Raises:
            InputError: the folder is no finished output of ``tinyqa answer``.
        """
        stage_folder.require_finished(folder, "answer")
        files = storage.list_files(storage.join(folder, "answers"), ".parquet")
        self._rows = pa.concat_tables([_table(file) for file in sorted(files)], promote_options="default")
        asked = self._rows["question"].drop_null().unique().to_pylist()
        self._questions: list[str] = sorted(asked)
        self._analyzer = Analyzer("english")
        self._index, self._statistics = index_of(self._questions, self._analyzer)

    def find(self, words: str, most: int = 5) -> list[Found]:
        """The answered questions that share most with these words, with all of their answers."""
        if not 1 <= most <= _MOST_ANSWERS:
            raise InputError(f"most is {most}; it must be from 1 to {_MOST_ANSWERS}")
        terms = self._analyzer.terms(words)
        ((numbers, _),) = best_passages([terms], [self._index], self._statistics, most)
        return [self._found(self._questions[number]) for number in numbers.tolist()]

    def _found(self, question: str) -> Found:
        rows = self._rows.filter(pc.equal(self._rows["question"], question)).sort_by("rank").to_pylist()
        made = Found(question=question, answers=[], no_answer=1.0)
        for row in rows:
            if row["error"] is not None:
                made.unreadable.append(Unreadable(document=row["document_id"] or "", error=row["error"]))
                continue
            made.no_answer = min(made.no_answer, row["na_prob"])
            if row["answer"] is not None:
                made.answers.append(_stored(row))
        return made


def _stored(row: dict[str, Any]) -> FoundAnswer:
    """An answer as it was written: with evidence it has several places, else one, perhaps with boxes."""
    boxes = [MarkedBox(**box) for box in row.get("boxes") or ()]
    stands = row.get("places") or [row]
    places = [
        Place(
            document=each["document_id"] or "",
            start=each["start"],
            end=each["end"],
            page=each.get("page"),
            boxes=boxes if boxes and number == 0 else None,
            passage=each.get("sentence", each["answer"]),
        )
        for number, each in enumerate(stands)
    ]
    return FoundAnswer(answer=row["answer"], score=row["score"], places=places)


def _table(file: str) -> pa.Table:
    filesystem, inner = storage.resolve(file)
    with filesystem.open_input_file(inner) as source:
        # Counts of the pass, which differ from file to file.
        return pq.read_table(source).replace_schema_metadata(None)
