"""How questions are asked of a corpus: of which documents and passages, and which answers are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least, engine_of_cpus, share
from tinyqa_ray.configs.data import WindowConfig
from tinyqa_ray.configs.documents import DocumentLimits
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateConfig:
    """How BM25 selects the passages in which an answer to a question is sought."""

    candidates: int = 0
    """Most passages of the corpus that are read for a question, chosen by BM25; 0 reads all documents."""
    passage_words: int = 200
    """Words of a passage; a longer document is cut into several passages."""
    passage_overlap: int = 50
    """Words that neighbouring passages of a document share, at least."""
    language: str | None = "english"
    """Language of stemmer and stop words, as Snowball names it; none uses words as they are."""
    k1: float = 1.2
    """BM25's k1: the higher it is, the more further occurrences of a term count."""
    b: float = 0.75
    """BM25's b, from 0 to 1: the higher it is, the lower long passages score."""
    documents_per_shard: int = 8192
    """Documents in one file of the index."""
    questions_per_run: int = 1024
    """Questions for which passages are selected in one go."""

    def __post_init__(self) -> None:
        at_least(self, 1, "passage_words", "documents_per_shard", "questions_per_run")
        at_least(self, 0, "candidates", "passage_overlap", "k1")
        share(self, "b")
        # The index counts a term of a passage in 16 bits.
        if self.passage_words >= 1 << 16:
            raise InputError(f"passage_words is {self.passage_words}; it must be below {1 << 16}")
        if self.passage_overlap >= self.passage_words:
            raise InputError(
                f"passage_overlap is {self.passage_overlap}; it must be below passage_words, "
                f"{self.passage_words}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConfig:
    """How questions are asked of a corpus, and which answers are kept."""

    RENAMED = NEW_NAMES["answer"]

    model: str = bundled.MODEL
    """Folder or hub id of a model with a question-answering head, or an export."""
    settings: str | None = None
    """Threshold and scale of scores: the output of an evaluation, or a settings file. When not given, those
    beside the model are used, if any."""
    first_pass: str | None = None
    """Folder or hub id of a smaller model, or an export, that reads all pairs first, or of an encoder of
    sentences, which reads each text and each question once. ``model`` then reads only the texts that may hold
    the best answer; the others count as texts without an answer."""
    first_pass_keep: float | None = None
    """How far below the best text of a question, in the first pass's log odds of an answer or in similarity,
    a text may be for ``model`` to read it, too. When not given, as ``tinyqa evaluate --fit-first-pass``
    fitted it."""
    documents: str | None = None
    """Parquet, JSONL, CSV or TSV with columns ``id`` and ``text`` (other columns are copied to the answers),
    a folder of such files, or a folder of .txt files. Or documents as people have them: PDF, DOCX, PPTX,
    HTML, Markdown, EPUB and text (extra 'documents'); a file, a folder, or a pattern such as 's3://bucket/**/*.pdf'."""
    questions: str | None = None
    """Files of the same formats with columns ``question`` and, optionally, ``id``. With a column
    ``document_id``, each question is asked of its own document, otherwise of all documents."""
    pairs: str | None = None
    """Table with columns ``question`` and ``context``, instead of documents and questions."""
    document_limits: DocumentLimits = DocumentLimits()
    """What a file may take, if documents are files; one that takes more is reported as unreadable."""
    selection: CandidateConfig = CandidateConfig()
    """How passages are selected, if ``candidates`` is above 0."""
    index: str | None = execution(None)
    """Folder for the BM25 index, which is kept for other questions about the same documents. When not given,
    the index is within the output, and deleted at the end."""
    top_k: int | Literal["all"] = 1
    """Most answers to keep for each question; 'all' are those that the model holds for an answer, each by
    itself at the threshold, at most a hundred of a document (or of per_document_k) and a thousand in all."""
    evidence: bool = False
    """Whether equal answers become one row, with a column ``places`` of all documents and characters that
    say it, and a score of them together. ``top_k`` then counts different answers, and ``per_document_k``
    places."""
    per_document_k: int | None = None
    """Most answers to keep for each question from one document; as many as top_k when not given."""
    min_score: float = 0.0
    """Answers with a lower score are left out."""
    keep_no_answers: bool = True
    """Whether a question without an answer gets a row that says so."""
    jsonl: bool = False
    """Whether to write the answers as JSON lines, too."""
    max_answer_tokens: int = 30
    """Longest answer, in tokens."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    rows_per_shard: int = 1024
    """Pairs of a question and a text in one output file; a file is the unit of work."""
    precision: str | None = None
    """How the model is run: fp32, bf16, fp16, or the name of an engine, such as torch-fp32 or onnx-int8. When
    not given: on a GPU as in serve; on a CPU the fastest engine at hand (see tinyqa engines). It is chosen
    once for a run: all actors use the same, and so does a run that is continued."""
    actors: int = execution(1)
    """Ray actors, each with its own copy of the model."""
    threads: int = execution(0)
    """Torch threads of each actor; 0 shares the cores of a node among the actors on it."""
    num_gpus: float = execution(0.0)
    """GPUs of each actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        if self.top_k != "all":
            at_least(self, 1, "top_k")
        at_least(self, 1, "per_document_k", "max_answer_tokens", "rows_per_shard", "actors")
        at_least(self, 0, "threads", "num_gpus")
        engine_of_cpus(self)
        share(self, "min_score")
        if self.pairs is None and (self.documents is None or self.questions is None):
            absent = [name for name in ("documents", "questions") if getattr(self, name) is None]
            raise InputError(f"{' and '.join(absent)} not given; give documents and questions, or pairs")
        if self.pairs is not None and (self.documents is not None or self.questions is not None):
            raise InputError("pairs have their own questions and texts; leave out documents and questions")
        if self.pairs is not None and self.selection.candidates:
            raise InputError(
                "candidates are chosen from documents, but pairs have their texts; leave candidates out"
            )
        at_least(self, 0, "first_pass_keep")
        if self.first_pass is not None and self.pairs is not None:
            raise InputError(
                "first_pass chooses among several texts of a question, but pairs have one each; leave it out"
            )
        if self.first_pass_keep is not None and self.first_pass is None:
            raise InputError("first_pass_keep has no effect without first_pass; give first_pass, too")
        if self.index is not None and not self.selection.candidates:
            raise InputError("index has no effect without candidates; give candidates, too")
