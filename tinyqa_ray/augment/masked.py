"""Words that a masked language model proposes in place of a word, given the rest of its text.

TinyBERT (arXiv 1909.10351, algorithm 1) masks one word per forward and takes the best K words. Here a forward
masks a share of a text's words at once, far from one another; masking one word per forward is an option.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from tinyqa_ray.augment.masked_lm import MaskedLogits, load_masked_lm
from tinyqa_ray.augment.neighbours import whole_words
from tinyqa_ray.augment.rewriting import Span
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import whole
from tinyqa_ray.engines.devices import pick_device, pick_dtype
from tinyqa_ray.engines.memory import Memory
from tinyqa_ray.models import families, pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Index = NDArray[np.int64]
Likely = tuple[Index, Index, NDArray[np.float32]]
"""Row, number in the word list, and logit of each word that may be among the best of its row; in no order."""

_MEND = "let fewer actors share the device, or use a larger one"
"""Said where a single window does not fit; how long it is, the model's reach decides."""


class MaskedCandidates:
    """The best words of a masked language model for the words of a text.

    A forward holds rows of one text only. They are equally long, so nothing is padded, and the candidates of
    a word cannot depend on the other texts of a call. Several threads may ask at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        name: str,
        k: int,
        masked_share: float,
        max_batch_tokens: int,
        seed: int,
    ) -> None:
        """Check that a model and a tokenizer of transformers can be used together; ``load`` is the usual way.

        Args:
            model: a masked language model, on its device and in its precision.
            tokenizer: its fast tokenizer.
            name: name of the model in errors.
            k: candidates per word, 1 or more.
            masked_share: share of a text's wanted words that one forward masks, in [0, 1]; 0 masks one word.
            max_batch_tokens: tokens of one forward, 1 or more; a longer row gets a forward of its own.
            seed: decides, together with the text, which words are masked together.

        Raises:
            InputError: the tokenizer is a SentencePiece one, or has no mask token, offsets or whole words; or
                a number is out of range.
        """
        if k < 1 or max_batch_tokens < 1 or not 0.0 <= masked_share <= 1.0:
            raise InputError(
                f"k is {k}, max_batch_tokens {max_batch_tokens}, masked_share {masked_share}; "
                "the first two must be 1 or more, the last must lie in [0, 1]"
            )
        vocabulary, words, ids = _vocabulary(name, tokenizer, model.get_input_embeddings().num_embeddings)
        self.k = k
        self.masked_share = masked_share
        self.max_batch_tokens = max_batch_tokens
        self.seed = seed
        self._logits = MaskedLogits(model)
        self._memory = Memory(model.device, _MEND)
        self._words = _WordList(words, ids)
        self._unspaced_words, self._unspaced_ids = _unspaced(vocabulary, words, ids)
        self._mask_id, self._unknown_id = tokenizer.mask_token_id, tokenizer.unk_token_id
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text, not a mask
        probe = self._tokenizer.encode("a")
        first = probe.sequence_ids.index(0)
        last = len(probe) - probe.sequence_ids[::-1].index(0)
        self._before = np.array(probe.ids[:first], dtype=np.int64)
        self._after = np.array(probe.ids[last:], dtype=np.int64)
        reach = min(families.max_window_tokens(model.config), tokenizer.model_max_length)
        self._room = reach - len(self._before) - len(self._after)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "cpu",
        k: int,
        masked_share: float,
        max_batch_tokens: int,
        seed: int,
    ) -> MaskedCandidates:
        """Load a model and its tokenizer from a folder, a URL or the hub; half precision on a GPU.

        Raises:
            InputError: as in ``load_masked_lm``, ``engines.pick_device`` and the constructor.
        """
        place = pick_device(device)
        model = load_masked_lm(name).to(device=place, dtype=pick_dtype("auto", place))
        return cls(
            model,
            pretrained.load_tokenizer(name),
            name=name,
            k=k,
            masked_share=masked_share,
            max_batch_tokens=max_batch_tokens,
            seed=seed,
        )

    def candidates(
        self, contexts: Sequence[str], wanted: Sequence[Sequence[Span]]
    ) -> list[list[list[str] | None]]:
        """Propose replacements for words.

        Args:
            contexts: n texts; one that is too long for the model is read in windows that overlap by half,
                and each word is masked in the window where it has most text around it.
            wanted: for each text, half-open character spans of words, in any order.

        Returns:
            For each text and each of its spans at most ``k`` words, best first: whole words of the
            vocabulary, different from the word and from one another by more than case. None where the
            tokenizer splits the word or does not know it.

        Raises:
            InputError: the memory of the device does not suffice for a single window.
        """
        assert len(contexts) == len(wanted), (len(contexts), len(wanted))
        encodings = self._tokenizer.encode_batch([whole(text) for text in contexts], add_special_tokens=False)
        return [
            self._of_text(context, spans, encoding)
            for context, spans, encoding in zip(contexts, wanted, encodings, strict=True)
        ]

    def _of_text(self, context: str, spans: Sequence[Span], encoding: Encoding) -> list[list[str] | None]:
        ids = np.array(encoding.ids, dtype=np.int64)
        tokens = single_tokens(context, encoding.offsets)
        places = {span: tokens[span] for span in spans if span in tokens}
        positions = np.array(sorted(set(places.values())), dtype=np.int64)
        positions = positions[ids[positions] != self._unknown_id]
        text_of = {at: context[start:end] for (start, end), at in places.items()}
        best: dict[int, list[str]] = {}
        for masked, found in self._forwards(context, ids, positions):
            for (rows, words), likely in zip(self._lists(ids[masked]), found, strict=True):
                mine = masked[rows].tolist()
                own = [(text_of[at], int(ids[at])) for at in mine]
                best.update(zip(mine, words.best(likely, own, self.k), strict=True))
        return [best.get(places[span]) if span in places else None for span in spans]

    def _lists(self, tokens: Index) -> list[tuple[NDArray[np.bool_], _WordList]]:
        """Each word list, and which of ``tokens`` are replaced by its words."""
        unspaced = np.isin(tokens, self._unspaced_ids)
        return [(~unspaced, self._words), (unspaced, self._unspaced_words)]

    def _forwards(self, context: str, ids: Index, positions: Index) -> Iterator[tuple[Index, list[Likely]]]:
        """Mask every position once; yield each forward's positions, and what is likely there in each list."""
        rng = np.random.default_rng(_number(f"{self.seed} {context}"))
        for start, inside in _windows(len(ids), self._room, positions):
            sequence = np.concatenate([self._before, ids[start : start + self._room], self._after])
            shift = len(self._before) - start
            groups = _groups(inside, self.masked_share, rng)
            rows_at_once = max(1, self.max_batch_tokens // len(sequence))
            for first in range(0, len(groups), rows_at_once):
                yield from self._fitting(ids, sequence, shift, groups[first : first + rows_at_once])

    def _fitting(
        self, ids: Index, sequence: Index, shift: int, groups: Sequence[Index]
    ) -> Iterator[tuple[Index, list[Likely]]]:
        """One forward of some groups of positions, or several of fewer if the memory does not suffice."""
        found = self._memory.tried(
            len(groups), len(sequence), lambda: self._forward(ids, sequence, shift, groups)
        )
        if found is not None:
            yield np.concatenate(groups), found
            return
        half = len(groups) // 2
        for part in (groups[:half], groups[half:]):
            yield from self._fitting(ids, sequence, shift, part)

    def _forward(self, ids: Index, sequence: Index, shift: int, groups: Sequence[Index]) -> list[Likely]:
        """Mask each group in a row of its own; what is likely at all positions, in each list.

        Args:
            ids: tokens of the whole text.
            sequence: those of the window.
            shift: what is added to a position to find it in the window.
            groups: positions.
        """
        rows = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        masked = np.concatenate(groups)
        inputs = np.tile(sequence, (len(groups), 1))
        inputs[rows, masked + shift] = self._mask_id

        def read(logits: torch.Tensor) -> list[Likely]:
            lists = self._lists(ids[masked])
            return [words.likely(logits[torch.from_numpy(mine)], self.k) for mine, words in lists]

        return self._logits(inputs, rows, masked + shift, read)


def single_tokens(context: str, offsets: Sequence[Span]) -> dict[Span, int]:
    """The spans that one token covers and no other token touches, with the token's number.

    Args:
        context: the text.
        offsets: half-open character spans of its tokens, in order; one space before the word, which
            byte-level tokenizers may include, is left out.
    """
    spans = [(start + (start < end and context[start].isspace()), end) for start, end in offsets]
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(context)]
    return {
        (start, end): number
        for number, (start, end) in enumerate(spans)
        if ends[number] <= start < end <= starts[number + 1]
    }


class _WordList:
    """Words, and the tokens by whose logits they are ranked."""

    def __init__(self, words: list[str], ids: list[int]) -> None:
        self.words = words
        self.ids = np.array(ids, dtype=np.int64)
        self.folded = [word.casefold() for word in words]
        self.most_forms = max(Counter(self.folded).values(), default=0)

    def likely(self, logits: torch.Tensor, k: int) -> Likely:
        """The words that may be among the best k of each row of logits, float32 ``(R, vocabulary)``."""
        if not len(logits) or not self.words:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        scores = logits[:, torch.from_numpy(self.ids).to(logits.device)]
        # Always enough: k other words and the word itself, in all forms that they can have, and its token.
        most = min((k + 1) * self.most_forms + 1, len(self.words))
        least = scores.topk(most).values[:, -1:]
        rows, columns = torch.nonzero(scores >= least, as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy(), scores[rows, columns].cpu().numpy()

    def best(self, likely: Likely, own: Sequence[tuple[str, int]], k: int) -> list[list[str]]:
        """At most k words for each of R rows, best first, ties by the lower id.

        Args:
            likely: what ``likely`` gave for the rows.
            own: the word and the token that stand in each of the R places; they are left out.
            k: words per row.
        """
        if not own or not self.words:
            return [[] for _ in own]
        at, ranked, values = likely
        order = np.lexsort((ranked, -values, at))
        parts = np.split(ranked[order], np.cumsum(np.bincount(at, minlength=len(own)))[:-1])
        return [self._pick(part, word, token, k) for part, (word, token) in zip(parts, own, strict=True)]

    def _pick(self, ranked: Index, word: str, token: int, k: int) -> list[str]:
        chosen: dict[str, str] = {}
        for column in ranked.tolist():
            folded = self.folded[column]
            if folded != word.casefold() and self.ids[column] != token:
                chosen.setdefault(folded, self.words[column])
                if len(chosen) == k:
                    break
        return list(chosen.values())


def _vocabulary(name: str, tokenizer: Any, model_tokens: int) -> tuple[dict[str, int], list[str], list[int]]:
    """Token to id, and the whole words with their ids; InputError if the tokenizer cannot be used."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{name}: its tokenizer gives no character offsets; save a tokenizer.json")
    if tokenizer.mask_token_id is None or tokenizer.mask_token_id >= model_tokens:
        raise InputError(f"{name}: has no mask token; give a masked language model (bert-base-cased, …)")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    try:
        words, ids = whole_words(vocabulary)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if not words or max(vocabulary.values()) >= model_tokens:
        raise InputError(
            f"{name}: its tokenizer has {len(vocabulary)} tokens ({len(words)} whole words), the model "
            f"{model_tokens}; give a masked language model beside its own tokenizer"
        )
    return vocabulary, words, ids


def _unspaced(vocabulary: dict[str, int], words: list[str], ids: list[int]) -> tuple[_WordList, Index]:
    """The words that a byte-level vocabulary also has without the space before, as after "(" or at the start.

    Returns:
        Those of ``words`` that have such a token, with its id, and the ids of all tokens without a space.
        Both are empty for a WordPiece vocabulary, which writes a word in one way only.
    """
    token_of = {token_id: token for token, token_id in vocabulary.items()}
    if not all(token_of[token_id].startswith("Ġ") for token_id in ids):
        return _WordList([], []), np.empty(0, dtype=np.int64)
    twins = [
        (vocabulary.get(token_of[token_id][1:]), word) for word, token_id in zip(words, ids, strict=True)
    ]
    there = sorted((twin, word) for twin, word in twins if twin is not None)
    unspaced = [token_id for token, token_id in vocabulary.items() if not token.startswith("Ġ")]
    return _WordList([word for _, word in there], [twin for twin, _ in there]), np.array(sorted(unspaced))


def _windows(tokens: int, room: int, positions: Index) -> Iterator[tuple[int, Index]]:
    """First token of each window of ``room`` tokens, and the positions with most text around them there."""
    last = max(tokens - room, 0)
    starts = np.array([*range(0, last, max(room // 2, 1)), last])
    left = positions[:, None] - starts
    home = np.minimum(left, room - 1 - left).argmax(axis=1)
    for number, start in enumerate(starts.tolist()):
        yield start, positions[home == number]


def _groups(positions: Index, share: float, rng: np.random.Generator) -> list[Index]:
    """Deal positions in turn into groups that are masked together; each holds about ``share`` of them.

    Between two positions of a group lie about as many others as there are groups, at least a third as many.
    """
    n = len(positions)
    count = n if share == 0 else math.ceil(min(n, 1 / share))
    order = np.argsort(np.arange(n) + rng.uniform(0, count / 3, n))
    return [positions[order[first::count]] for first in range(count)]


def _number(text: str) -> int:
    """A number of 128 bits that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16], "big")
