"""How questions become windows: data is gathered, augmented, cut into windows and read by teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyqa_ray.configs.checks import at_least, default, share
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """How a question and its context become windows of tokens."""

    max_seq_len: int = 384
    """Tokens in a window: question, part of the context, and special tokens."""
    doc_stride: int = 128
    """Tokens that neighbouring windows of a context share (the overlap, as in transformers); windows of plain
    text share none."""
    max_query_len: int = 64
    """Most tokens of a question; a longer question is cut off."""

    def __post_init__(self) -> None:
        at_least(self, 0, "doc_stride")
        at_least(self, 1, "max_seq_len", "max_query_len")
        # Four is the most special tokens that a pair takes (RoBERTa).
        room = self.max_seq_len - self.max_query_len - 4
        if room <= self.doc_stride:
            raise InputError(
                f"max_seq_len {self.max_seq_len} leaves {max(room, 0)} context tokens beside max_query_len "
                f"{self.max_query_len}, not more than doc_stride {self.doc_stride}; windows would not advance"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GatherConfig:
    """How SQuAD data of several sources become one set to learn from."""

    data: tuple[str, ...]
    """SQuAD 2.0 JSON files, folders of paragraphs, or hub ids; they are put together in this order."""
    hold_out: tuple[str, ...] = ()
    """Titles of articles to leave out; they are written to ``held-out.json``, to fit thresholds on. Other
    paragraphs that repeat their texts are left out as those of ``apart_from`` are."""
    apart_from: tuple[str, ...] = ()
    """SQuAD data, such as what a model is measured on, whose texts must not come in: paragraphs and passages
    are left out if more than a fifth of their runs of eight words stand in it, whatever their titles are."""
    questions_per_paragraph: int | None = None
    """Most questions of a paragraph to keep, drawn at random; all when not given."""
    made_unanswerable: float = 0.0
    """Unanswerable questions to make per answerable one: the question is asked of another paragraph, which
    contains none of its answers."""
    other_paragraph: Literal["same-article", "most-similar"] = "same-article"
    """Which paragraph that is. same-article: one of its article, drawn at random. most-similar: of all
    articles, the one that is most similar to the question by BM25, which is harder to tell apart."""
    teacher: str | None = None
    """Question-answering model that reads the questions of ``made_unanswerable``: those that it finds an
    answer to, by its own threshold, are not kept, since the other paragraph may answer them after all."""
    rewritten: float = 0.0
    """Questions to rewrite per answerable one, so that their own paragraph no longer answers them: another
    name or number, an opposite, a "not" (English alone)."""
    sentences_alone: float = 0.0
    """Part of the answerable questions that are also asked of single sentences: the one with the answer, and
    another of its paragraph, which does not hold it."""
    documents: str | None = None
    """Passages that ``questions`` are asked of: Parquet, JSONL or CSV with columns ``id`` and ``text``."""
    questions: str | None = None
    """Questions without answers, with columns ``id``, ``question`` and ``document_id``. They have no labels:
    only the logits of teachers (objective ``prediction``) teach them."""
    seed: int = 42
    """Seed of every draw."""

    def __post_init__(self) -> None:
        at_least(self, 0, "made_unanswerable", "seed")
        share(self, "rewritten", "sentences_alone")
        at_least(self, 1, "questions_per_paragraph")
        for name in ("data", "apart_from"):
            given: object = getattr(self, name)
            if isinstance(given, str):  # a string is a sequence of names too, of one letter each
                raise InputError(
                    f"{name} is {given!r}; it must be a tuple of files, folders or hub ids: ({given!r},)"
                )
        if self.teacher is not None and not self.made_unanswerable:
            raise InputError(
                "teacher reads the questions of made_unanswerable, which is 0; raise it, or leave teacher out"
            )
        if (self.documents is None) != (self.questions is None):
            raise InputError("documents and questions belong together; give both, or neither")
        if not self.data and self.documents is None:
            raise InputError("there is nothing to gather; give data, or documents and questions")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How paragraphs are augmented (TinyBERT, arXiv 1909.10351, algorithm 1, with answers left unchanged)."""

    RENAMED = NEW_NAMES["augment"]

    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs, or a hub id."""
    masked_lm: str | None = None
    """Folder or hub id of a masked language model, which proposes words that fit the context. Without one, or
    with 'none', only neighbours in word vectors are proposed."""
    word_vectors: str | None = None
    """GloVe text file; its neighbours are proposed for words that the masked LM splits into several tokens,
    or for all words without a masked LM."""
    embeddings: str | None = None
    """Folder or hub id of a model whose input embeddings are used instead of GloVe; the masked LM's own when
    neither is given."""
    copies: int = 20
    """Copies of each paragraph, in addition to the original."""
    replace_probability: float = 0.4
    """Probability that a word that may change is replaced in a copy."""
    candidates: int | None = None
    """Best words from which a replacement is drawn; when not given, 15, or 20 with style 'haystack'."""
    masked_share: float | None = None
    """Share of a paragraph's words that are masked in one forward. 0 masks one word per forward, as in the
    published algorithm. When not given, 0.15, or 0 with style 'haystack'."""
    style: Literal["safe", "haystack"] = "safe"
    """'haystack' draws words as Haystack 1's augment_squad does: stop words may change, a word is a candidate
    for itself, and copies may be equal. Unlike there, answers, numbers, case, spacing and the original are
    kept."""
    teacher: str | None = None
    """Question-answering model that is asked, for the report, whether it still finds the gold spans in the
    copies."""
    keep_if_teacher_agrees: bool = False
    """Leave out a copy's question if the teacher no longer finds its gold span."""
    squad_json: str | None = None
    """File to which all copies are written as one SQuAD JSON, with unique ids and the originals (copy 0)
    first."""
    max_word_vectors: int = 100_000
    """Word vectors to read from the top of the file; GloVe's are sorted by frequency."""
    seed: int = 42
    """Seed of every draw; together with the paragraph's id it determines a copy."""
    rows_per_shard: int = 256
    """Paragraphs in one output file; a file is the unit of work."""
    max_batch_tokens: int = 4096
    """Tokens in one forward of the masked LM or the teacher, padding included."""
    actors: int = execution(1)
    """Ray actors that make copies at the same time."""
    threads: int = execution(0)
    """Torch threads of each actor; 0 shares the cores of a node among the actors on it."""
    num_gpus: float = execution(0.0)
    """GPUs of each actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        at_least(self, 0, "copies", "seed", "threads", "num_gpus")
        haystack = self.style == "haystack"
        default(self, "candidates", 20 if haystack else 15)
        default(self, "masked_share", 0.0 if haystack else 0.15)
        if self.masked_lm == "none":
            object.__setattr__(self, "masked_lm", None)
        if not (self.masked_lm or self.word_vectors or self.embeddings):
            raise InputError("nothing proposes words; give masked_lm, word_vectors or embeddings")
        if self.keep_if_teacher_agrees and self.teacher is None:
            raise InputError("keep_if_teacher_agrees needs a teacher; give one with teacher")
        at_least(self, 1, "candidates", "rows_per_shard", "actors", "max_batch_tokens")
        at_least(self, 2, "max_word_vectors")
        share(self, "replace_probability", zero=False)
        share(self, "masked_share")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogitsConfig:
    """How paragraphs become windows with teachers' logits."""

    RENAMED = NEW_NAMES["teacher-logits"]

    data: str
    """SQuAD 2.0 JSON, a folder of paragraphs (also augmented ones), or a hub id. For general distillation,
    plain text: a .txt file or a folder of them, with blank lines between paragraphs."""
    tokenizer: str | None = None
    """Folder or hub id of the student, or of any model with the same tokenizer; the first teacher when not
    given."""
    teachers: tuple[str, ...] = ()
    """One or several teachers: folders or hub ids of models with a question-answering head, or exports.
    Without teachers, windows have labels only. Plain text takes no teachers."""
    combine: Literal["average", "apart"] = "average"
    """How logits of several teachers are kept: their mean, or each teacher's in columns of its own."""
    abstain_at_threshold: bool = False
    """On questions without labels, let each teacher abstain by its own fitted threshold: its null logits are
    shifted accordingly. Questions with labels, from which teachers may have learned, stay as they are."""
    settings: tuple[str, ...] = ()
    """Fitted threshold of each teacher: outputs of evaluations, or settings files; those beside the teachers
    when not given."""
    window: WindowConfig = WindowConfig()
    """Sizes of the windows."""
    rows_per_shard: int = 64
    """Paragraphs in one output file; a file is the unit of work. A pass of more than 4,096 such files has
    larger ones. For plain text, use thousands."""
    max_batch_tokens: int | None = None
    """Tokens in one forward of a teacher, padding included; chosen for the CPU or GPU when not given."""
    actors: int = execution(1)
    """Ray actors, each with its own copy of the teachers."""
    threads: int = execution(0)
    """Torch threads of each actor; 0 shares the cores of a node among the actors on it."""
    num_gpus: float = execution(0.0)
    """GPUs of each actor; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        at_least(self, 0, "threads", "num_gpus")
        at_least(self, 1, "rows_per_shard", "max_batch_tokens", "actors")
        given: object = self.teachers
        if given in ("average", "apart") or {"average", "apart"} & set(self.teachers):
            raise InputError(
                f"teachers is {given!r}; it must name models (what is kept of several is called combine)"
            )
        if isinstance(given, str):  # a string is a sequence of names too, of one letter each
            raise InputError(f"teachers is {given!r}; it must be a tuple of folders or hub ids: ({given!r},)")
        if self.settings and len(self.settings) != len(self.teachers):
            raise InputError(
                f"{len(self.settings)} settings are given, but {len(self.teachers)} teachers; give one each"
            )
        if self.tokenizer is None and not self.teachers:
            raise InputError(
                "neither tokenizer nor teachers are given; name the student whose windows to cut"
            )
