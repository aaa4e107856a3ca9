"""Question + context, or a text alone → windows of tokens, with offsets into the context and labels.

Questions and contexts are tokenised separately, each distinct text once, and joined as the tokenizer would
join them. Windows differ in length: they are padded only when a batch is formed.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from tinyqa_ray.core.errors import InputError

if TYPE_CHECKING:
    from tinyqa_ray.configs import WindowConfig

Int = NDArray[np.int32]
Pair = tuple[str, str]
"""A question and its context."""
Questions = Mapping[str, Int]
"""Token ids of questions, see ``Windower.questions``."""

SPACES = np.array([point for point in range(0x3001) if chr(point).isspace()], dtype=np.uint32)
"""All white space of Unicode."""
_SURROGATE = re.compile("[\ud800-\udfff]")

NO_ANSWER = 0
"""Label of a window that does not hold the whole answer: the position of the window's first token."""
NO_LABEL = -1
"""Label of a window whose answer has no token (an answer of spaces, for example): training ignores it."""


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """What the tokenizer puts around a pair: ids before the question, between the two, after the context.

    A text alone takes the place of the context; ``between`` is then empty.
    """

    before: Int
    between: Int
    after: Int
    before_types: Int
    between_types: Int
    after_types: Int
    question_type: int
    context_type: int

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of W windows of different lengths: all that a model reads.

    Shapes:
        input_ids, type_ids: one array ``(tokens,)`` per window.
    """

    input_ids: list[Int]
    type_ids: list[Int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Int:
        """Number of tokens in each window, ``(W,)``."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Windows(Tokens):
    """W windows of P pairs, or of P texts alone: their tokens, and where these stand in the contexts.

    Shapes:
        pair, first_token, context_start, context_tokens: ``(W,)``. Window w shows context tokens
            ``first_token : first_token + context_tokens`` of its pair, from position ``context_start``
            on.
        offsets: one array ``(context tokens, 2)`` per pair: half-open character spans; none for texts
            alone.
        words: one array ``(context tokens,)`` per pair, if asked for: the number of each token's word, -1
            if the tokenizer gives none.
    """

    pair: Int
    first_token: Int
    context_start: Int
    context_tokens: Int
    offsets: list[Int]
    words: list[Int] | None = None

    def window_offsets(self, window: int) -> Int:
        """Character spans of a window's context tokens, ``(context_tokens, 2)``."""
        first = self.first_token[window]
        offsets: Int = self.offsets[self.pair[window]][first : first + self.context_tokens[window]]
        return offsets


class Windower:
    """Cuts the windows that a fast tokenizer's own ``only_second`` truncation with overflow would cut."""

    def __init__(
        self,
        tokenizer: Any,
        config: WindowConfig,
        *,
        cut_questions: bool = True,
        keep_spaces: bool = False,
    ) -> None:
        """Take a private copy of ``tokenizer`` (a fast one of transformers), so that its settings stay.

        Args:
            tokenizer: a fast tokenizer.
            config: sizes of the windows.
            cut_questions: cut questions to ``max_query_len``; otherwise they stay whole, and a question
                that leaves its context no room is refused.
            keep_spaces: leave offsets as the tokenizer gives them; those of some (DeBERTa, ALBERT,
                ModernBERT, GPT-2) include the space before a word. Otherwise a token's span never begins
                or ends with white space, and a token of white space has an empty span (its start is not
                below its end).

        Raises:
            InputError: the tokenizer has no fast (Rust) form, and so no offsets; or it pads on the left.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{getattr(tokenizer, 'name_or_path', tokenizer)}: its tokenizer gives no character offsets; "
                "save the model with a fast tokenizer (tokenizer.json)"
            )
        self.config = config
        self.cut_questions = cut_questions
        if getattr(tokenizer, "padding_side", "right") == "left":
            raise InputError(
                f"{tokenizer.name_or_path}: its tokenizer pads on the left, so the model was taught to read "
                "the context before the question; only models that read the question first are supported"
            )
        self.keep_spaces = keep_spaces
        self._tokenizer = Tokenizer.from_str(_untrimmed(tokenizer.backend_tokenizer.to_str(), keep_spaces))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "</s>" typed in a text is text, not the end of a sequence.
        self._tokenizer.encode_special_tokens = True
        self._pair_template = _pair_template(self._tokenizer)
        self._text_template = _text_template(self._tokenizer)

    @property
    def template(self) -> PairTemplate:
        """What stands around a question and its context."""
        return self._pair_template

    def questions(self, texts: Iterable[str]) -> Questions:
        """Token ids of each different question, cut to ``max_query_len`` where questions are cut."""
        longest = self.config.max_query_len if self.cut_questions else None
        return {text: _ids(encoding)[:longest] for text, encoding in self._tokenised(texts).items()}

    def windows(
        self, pairs: Sequence[Pair], questions: Questions | None = None, *, words: bool = False
    ) -> Windows:
        """Cut the windows of pairs, in the order of the pairs.

        Args:
            pairs: P questions, each with its context; equal texts are tokenised once.
            questions: what ``questions()`` gave for the questions, if the caller has it already.
            words: also number the words of the contexts.

        Returns:
            at least one window per pair, also for an empty context.

        Raises:
            InputError: questions are not cut, and one leaves its context too little room in a window.
        """
        if questions is None:
            questions = self.questions(question for question, _ in pairs)
        encodings = self._tokenised(c for _, c in pairs)
        contexts = {text: _ids(e) for text, e in encodings.items()}
        offsets = {text: self._offsets(e, text) for text, e in encodings.items()}
        numbers = {text: _word_numbers(e) for text, e in encodings.items()} if words else None
        made = _Rows()
        for number, (q, c) in enumerate(pairs):
            room, step = self._room(questions[q], contexts[c])
            made.cut(self._pair_template, number, questions[q], contexts[c], room, step)
        return made.windows(
            [offsets[c] for _, c in pairs], None if numbers is None else [numbers[c] for _, c in pairs]
        )

    def text_windows(self, texts: Sequence[str]) -> Windows:
        """Cut texts alone, each into consecutive windows of at most ``max_seq_len`` tokens.

        A window holds part of one text and what the tokenizer puts around a single text (``[CLS] … [SEP]``).
        The windows of a text hold each of its tokens once. They do not overlap, since there is no answer that
        a border could cut; ``doc_stride`` is not used.

        Args:
            texts: T texts.

        Returns:
            windows in the order of the texts; ``pair`` is the number of the text. A text without tokens
            has no window.
        """
        made = _Rows()
        nothing = np.empty(0, dtype=np.int32)
        room = self.config.max_seq_len - len(self._text_template)
        for number, encoding in enumerate(self._encode(texts)):
            if len(encoding):
                made.cut(self._text_template, number, nothing, _ids(encoding), room, room)
        return made.windows([])

    def resized(self, config: WindowConfig) -> Windower:
        """The same windower with other sizes; the tokenizer is shared."""
        other = copy.copy(self)
        other.config = config
        return other

    def too_long(self, questions: Questions) -> list[str]:
        """The questions that leave a context too little room in a window; none if questions are cut."""
        if self.cut_questions:
            return []
        room = self.config.max_seq_len - len(self._pair_template) - self.config.doc_stride
        return [text for text, ids in questions.items() if len(ids) >= room]

    def _tokenised(self, texts: Iterable[str]) -> dict[str, Encoding]:
        """The tokens of each different text."""
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self._encode(different), strict=True))

    def _offsets(self, encoding: Encoding, text: str) -> Int:
        """Character spans of the tokens of a text, ``(tokens, 2)``."""
        found = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        return found if self.keep_spaces else without_spaces(found, text)

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The texts' tokens, without special tokens."""
        return self._tokenizer.encode_batch([whole(text) for text in texts], add_special_tokens=False)

    def _room(self, question: Int, context: Int) -> tuple[int, int]:
        """How many context tokens a window holds, and how many tokens later the next window begins."""
        room = self.config.max_seq_len - len(question) - len(self._pair_template)
        step = room - self.config.doc_stride
        if step <= 0 and len(context) > room:
            raise InputError(
                f"a question of {len(question)} tokens leaves {max(room, 0)} context tokens of max_seq_len "
                f"{self.config.max_seq_len}, not more than doc_stride {self.config.doc_stride}; "
                "shorten the question, raise max_seq_len or lower doc_stride"
            )
        return room, step


class _Rows:
    """Windows under construction."""

    def __init__(self) -> None:
        self.input_ids: list[Int] = []
        self.type_ids: list[Int] = []
        self.pair: list[int] = []
        self.first_token: list[int] = []
        self.context_start: list[int] = []
        self.context_tokens: list[int] = []

    def cut(
        self, template: PairTemplate, pair: int, question: Int, context: Int, room: int, step: int
    ) -> None:
        """Add the windows of a pair: each holds ``room`` context tokens and begins ``step`` later."""
        head = np.concatenate([template.before, question, template.between])
        head_types = np.concatenate(
            [
                template.before_types,
                np.full(len(question), template.question_type, np.int32),
                template.between_types,
            ]
        )
        first = 0
        while True:
            part = context[first : first + room]
            self.input_ids.append(np.concatenate([head, part, template.after]))
            context_types = np.full(len(part), template.context_type, np.int32)
            self.type_ids.append(np.concatenate([head_types, context_types, template.after_types]))
            self.pair.append(pair)
            self.first_token.append(first)
            self.context_start.append(len(head))
            self.context_tokens.append(len(part))
            if first + room >= len(context):
                return
            first += step

    def windows(self, offsets: list[Int], words: list[Int] | None = None) -> Windows:
        """All windows that were added."""
        return Windows(
            self.input_ids,
            self.type_ids,
            np.array(self.pair, dtype=np.int32),
            np.array(self.first_token, dtype=np.int32),
            np.array(self.context_start, dtype=np.int32),
            np.array(self.context_tokens, dtype=np.int32),
            offsets,
            words,
        )


def whole(text: str) -> str:
    """``text`` with U+FFFD for lone surrogates, which no tokenizer takes: same length, same offsets."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def without_spaces(offsets: Int, text: str) -> Int:
    """Character spans of tokens without the white space at their ends.

    Args:
        offsets: half-open spans in ``text``, ``(tokens, 2)``, in order.
        text: the text that the tokens are of.

    Returns:
        spans, ``(tokens, 2)``, in order. The span of a token of white space begins where the next text begins
        and ends where the last text ended, so that no span from one token to another has white space at its
        ends.
    """
    if not len(offsets):
        return offsets
    points = np.frombuffer(whole(text).encode("utf-32-le"), dtype=np.uint32)
    blank = np.isin(points, SPACES)
    starts, ends = offsets[:, 0], offsets[:, 1]
    if not blank[starts[starts < len(points)]].any() and not blank[ends[ends > 0] - 1].any():
        return offsets
    places = np.arange(len(points))
    # For each place: the next character that is not blank, and the end of the last one before the place.
    following = np.append(
        np.minimum.accumulate(np.where(blank, len(points), places)[::-1])[::-1], len(points)
    )
    preceding = np.append(0, np.maximum.accumulate(np.where(blank, 0, places + 1)))
    return np.stack([following[starts], preceding[ends]], axis=1).astype(np.int32)


def labels(windows: Windows, spans: Sequence[tuple[int, int] | None]) -> tuple[Int, Int]:
    """First and last token of the answer in each window.

    Args:
        windows: W windows of P pairs.
        spans: for each pair the half-open character span of its answer, or None when it has none.

    Returns:
        start and end positions, ``(W,)`` each: NO_ANSWER where the window lacks part of the answer,
        NO_LABEL where the answer has no token.
    """
    starts = np.full(len(windows), NO_ANSWER, dtype=np.int32)
    ends = np.full(len(windows), NO_ANSWER, dtype=np.int32)
    for window, pair in enumerate(windows.pair):
        span = spans[pair]
        if span is None:
            continue
        offsets = windows.offsets[pair]
        # Tokens of one character (the bytes of an emoji) share its offsets; take all of them.
        first = int(np.searchsorted(offsets[:, 1], span[0], side="right"))
        last = int(np.searchsorted(offsets[:, 0], span[1], side="left")) - 1
        shift = int(windows.context_start[window]) - int(windows.first_token[window])
        if last < first:
            starts[window] = ends[window] = NO_LABEL
        elif windows.first_token[window] <= first and last < (
            windows.first_token[window] + windows.context_tokens[window]
        ):
            starts[window], ends[window] = first + shift, last + shift
    return starts, ends


def labels_of_any(windows: Windows, spans: Sequence[Sequence[tuple[int, int]]]) -> tuple[Int, Int]:
    """First and last token of the first answer that each window holds whole.

    A window that lacks a question's first answer may hold a later one, and is then labelled with that.

    Args:
        windows: W windows of P pairs.
        spans: for each pair the half-open character spans of its answers, none where it has no answer.

    Returns:
        start and end positions, ``(W,)`` each: NO_ANSWER where the window holds no whole answer; NO_LABEL
        where, besides, one of the answers has no token.
    """
    starts, ends = labels(windows, [None] * len(spans))
    for rank in range(max(map(len, spans), default=0)):
        others = labels(windows, [answers[rank] if rank < len(answers) else None for answers in spans])
        free = (starts <= NO_ANSWER) & (others[0] != NO_ANSWER)
        starts[free], ends[free] = others[0][free], others[1][free]
    return starts, ends


def pad(rows: Sequence[Int], value: int, length: int | None = None) -> NDArray[np.int64]:
    """Rows of different lengths as one matrix ``(rows, longest)``, filled up with ``value``."""
    padded = np.full((len(rows), length or max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def token_budget_batches(lengths: NDArray[np.int32], max_tokens: int) -> list[NDArray[np.int64]]:
    """Indices of windows, longest first, in batches of at most ``max_tokens`` tokens, padding included.

    A window longer than the budget gets a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def _untrimmed(tokenizer: str, keep_spaces: bool) -> str:
    """A tokenizer's JSON with the trimming of offsets switched off, unless ``keep_spaces``.

    Byte-level tokenizers trim the space before a word from its offsets. Where that space is missing, some
    trim the word's first letter instead; ``without_spaces`` trims only white space that is there.
    """
    if keep_spaces:
        return tokenizer
    document = json.loads(tokenizer)
    post = document.get("post_processor") or {}
    for each in (post, *post.get("processors", ())):
        if "trim_offsets" in each:
            each["trim_offsets"] = False
    return json.dumps(document)


def _ids(encoding: Encoding) -> Int:
    return np.array(encoding.ids, dtype=np.int32)


def _word_numbers(encoding: Encoding) -> Int:
    return np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int32)


def _pair_template(tokenizer: Tokenizer) -> PairTemplate:
    """Read the template of a pair off the tokenizer by encoding one."""
    probe = tokenizer.encode("a", "b")
    sequence = probe.sequence_ids
    first, second = sequence.index(0), sequence.index(1)
    end_first = len(sequence) - sequence[::-1].index(0)
    end_second = len(sequence) - sequence[::-1].index(1)
    assert end_first <= second, "the tokenizer puts the context first"
    ids, types = np.array(probe.ids, dtype=np.int32), np.array(probe.type_ids, dtype=np.int32)
    return PairTemplate(
        ids[:first],
        ids[end_first:second],
        ids[end_second:],
        types[:first],
        types[end_first:second],
        types[end_second:],
        int(types[first]),
        int(types[second]),
    )


def _text_template(tokenizer: Tokenizer) -> PairTemplate:
    """Read the template of a text alone off the tokenizer by encoding one."""
    probe = tokenizer.encode("a")
    sequence = probe.sequence_ids
    first, end = sequence.index(0), len(sequence) - sequence[::-1].index(0)
    ids, types = np.array(probe.ids, dtype=np.int32), np.array(probe.type_ids, dtype=np.int32)
    kind = int(types[first])
    return PairTemplate(ids[:first], ids[:0], ids[end:], types[:first], types[:0], types[end:], kind, kind)
