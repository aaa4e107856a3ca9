from __future__ import annotations

import functools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

from tinyqa_ray.augment.masked import MaskedCandidates, single_tokens
from tinyqa_ray.augment.masked_lm import MaskedLogits
from tinyqa_ray.augment.rewriting import Span, word_spans
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import families

CONTEXTS = [
    paragraph["context"] for article in tiny.squad_document()["data"] for paragraph in article["paragraphs"]
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def wordpiece(*more: str, lower: bool = True) -> Any:
    """The tiny WordPiece tokenizer with more words in its vocabulary."""
    pieces = [*sorted(tiny.wordpiece_tokenizer().get_vocab().items(), key=lambda pair: pair[1])]
    vocabulary = {piece: number for number, piece in enumerate([*(p for p, _ in pieces), *more])}
    return transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=lower)


@functools.cache
def bytelevel() -> Any:
    """A RoBERTa tokenizer that holds most words of the contexts, with and without a space before."""
    words = {context[slice(*span)] for context in CONTEXTS for span in word_spans(context)}
    trained = Tokenizer(tokenizer_models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([f"{word} {word}" for word in sorted(words) if len(word) < 8] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return transformers.RobertaTokenizerFast(vocab=trained.get_vocab(), merges=merges, trim_offsets=True)


def build(architecture: str, tokenizer: Any, positions: int = 512) -> Any:
    """A random model whose logits differ clearly between tokens."""
    model_class = getattr(transformers, architecture)
    positions += 2 if architecture.startswith(("Roberta", "MPNet")) else 0
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = model_class.config_class(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        **special,
        **SIZES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).eval()


def save(folder: Path, architecture: str, tokenizer: Any, positions: int = 512) -> str:
    build(architecture, tokenizer, positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are slowed down by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("bert"), "BertForMaskedLM", wordpiece("νερο", "γραμμα", "вода"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("roberta"), "RobertaForMaskedLM", bytelevel())


@pytest.fixture(params=["bert", "roberta"])
def either(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.getfixturevalue(request.param))


CHOSEN: dict[str, Any] = {"k": 5, "masked_share": 0.0, "max_batch_tokens": 512, "seed": 0}


def of_word(candidates: MaskedCandidates, context: str, span: Span) -> list[str]:
    """The candidates of one word, which has some."""
    found = candidates.candidates([context], [[span]])[0][0]
    assert found
    return found


def load(folder: str, **options: Any) -> MaskedCandidates:
    return MaskedCandidates.load(folder, **{**CHOSEN, **options})


@functools.cache
def plain(folder: str) -> tuple[Any, Any]:
    """The tokenizer and the model as transformers loads them."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder), model.eval()


def one_word_at_a_time(folder: str, context: str, span: Span, k: int) -> list[str] | None:
    """The paper's algorithm with transformers alone: mask, forward, softmax, sort; then whole words only."""
    tokenizer, model = plain(folder)
    encoded = tokenizer(context, return_offsets_mapping=True, return_tensors="pt")
    offsets = encoded.pop("offset_mapping")[0].tolist()
    touching = [i for i, (start, end) in enumerate(offsets) if start < span[1] and span[0] < end]
    if len(touching) != 1 or offsets[touching[0]] != list(span):
        return None
    own = tokenizer.convert_ids_to_tokens(int(encoded["input_ids"][0, touching[0]]))
    if own == tokenizer.unk_token:
        return None
    encoded["input_ids"][0, touching[0]] = tokenizer.mask_token_id
    with torch.no_grad():
        probabilities = model(**encoded).logits[0, touching[0]].softmax(-1)
    chosen: list[str] = []
    for token_id in probabilities.argsort(descending=True).tolist():
        token = word = tokenizer.convert_ids_to_tokens(token_id)
        if model.config.model_type == "roberta":
            spaced = token.startswith("Ġ")
            twin = tokenizer.convert_tokens_to_ids(token if spaced else f"Ġ{token}")
            if spaced != own.startswith("Ġ") or twin == tokenizer.unk_token_id:
                continue
            word = tokenizer.convert_tokens_to_string([token]).strip()
        taken = {context[slice(*span)].casefold(), *map(str.casefold, chosen)}
        if word.isalpha() and len(word) > 1 and token != own and word.casefold() not in taken:
            chosen.append(word)
    return chosen[:k]


Watch = Callable[[MaskedCandidates], list[torch.Tensor]]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Record the input ids of every forward."""

    def start(candidates: MaskedCandidates) -> list[torch.Tensor]:
        inputs: list[torch.Tensor] = []
        model = candidates._logits.model
        forward = model.forward

        def recorded(input_ids: torch.Tensor) -> Any:
            inputs.append(input_ids.clone())
            return forward(input_ids=input_ids)

        monkeypatch.setattr(model, "forward", recorded)
        return inputs

    return start


@pytest.mark.parametrize("max_batch_tokens", [1, 300])
def test_exact_mode_gives_what_one_forward_a_word_gives(either: str, max_batch_tokens: int) -> None:
    contexts = [CONTEXTS[0], 'Oil, (oil) "Ship" — ship\nnight-lamp OIL']
    wanted = [word_spans(context) for context in contexts]
    found = load(either, max_batch_tokens=max_batch_tokens).candidates(contexts, wanted)
    flat: list[list[str] | None] = []
    for context, spans, rows in zip(contexts, wanted, found, strict=True):
        assert rows == [one_word_at_a_time(either, context, span, 5) for span in spans]
        flat += rows
    assert None in flat
    assert sum(row is not None and len(row) == 5 for row in flat) > len(flat) / 2


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_candidates_do_not_depend_on_the_other_texts_of_a_call(either: str, share: float) -> None:
    candidates = load(either, masked_share=share)
    contexts = CONTEXTS[2:6]
    wanted = [word_spans(context) for context in contexts]
    together = candidates.candidates(contexts, wanted)
    assert candidates.candidates(contexts[::-1], wanted[::-1])[::-1] == together
    assert [candidates.candidates([c], [w])[0] for c, w in zip(contexts, wanted, strict=True)] == together
    words = wanted[0][::-1] + wanted[0][:3]  # in another order, some twice
    again = load(either, masked_share=share)
    assert again.candidates(contexts[:1], [words])[0] == together[0][::-1] + together[0][:3]


@pytest.mark.parametrize("share", [0.15, 0.25, 1.0])
def test_a_forward_masks_the_share_and_every_word_is_masked_once(
    either: str, share: float, watch: Watch
) -> None:
    candidates = load(either, masked_share=share, max_batch_tokens=100_000)
    inputs = watch(candidates)
    context = CONTEXTS[1]
    found = candidates.candidates([context], [word_spans(context)])[0]
    (rows,) = inputs
    masked = rows == plain(either)[0].mask_token_id
    assert len(rows) == math.ceil(1 / share)
    assert masked.sum() == sum(row is not None for row in found)
    assert masked.sum(dim=0).max() == 1
    counts = masked.sum(dim=1)
    assert counts.max() - counts.min() <= 1


def test_words_masked_together_stand_apart(bert: str, watch: Watch) -> None:
    candidates = load(bert, masked_share=0.1)
    inputs = watch(candidates)
    context = "oil ship lamp beach night " * 20
    candidates.candidates([context], [word_spans(context)])
    gaps = [
        right - left
        for row in torch.cat(inputs)
        for places in [(row == candidates._mask_id).nonzero().flatten()]
        for left, right in pairwise(places.tolist())
    ]
    assert len(gaps) == 90
    assert min(gaps) >= 3
    assert sum(gaps) / len(gaps) == pytest.approx(10, abs=1)


def test_seed_decides_which_words_are_masked_together(bert: str, watch: Watch) -> None:
    context = CONTEXTS[0]
    runs = []
    for seed in (0, 0, 1):
        candidates = load(bert, masked_share=0.2, seed=seed)
        inputs = watch(candidates)
        candidates.candidates([context], [word_spans(context)])
        runs.append(torch.cat(inputs).tolist())
    assert runs[0] == runs[1] != runs[2]


def test_a_forward_holds_no_more_tokens_than_the_budget(bert: str, watch: Watch) -> None:
    candidates = load(bert, max_batch_tokens=200)
    inputs = watch(candidates)
    candidates.candidates(CONTEXTS, [word_spans(context) for context in CONTEXTS])
    assert len(inputs) > len(CONTEXTS)
    assert max(ids.numel() for ids in inputs) <= 200


@pytest.mark.parametrize(("family", "share"), [("bert", 0.0), ("bert", 0.3), ("roberta", 0.3)])
def test_long_text_is_read_whole_with_words_well_inside_their_window(
    family: str, share: float, tmp_path: Path, watch: Watch
) -> None:
    architecture, tokenizer = {
        "bert": ("BertForMaskedLM", wordpiece()),
        "roberta": ("RobertaForMaskedLM", bytelevel()),
    }[family]
    candidates = load(save(tmp_path, architecture, tokenizer, positions=34), masked_share=share)
    inputs = watch(candidates)
    context = " ".join(CONTEXTS[:4])
    ids = tokenizer(context, add_special_tokens=False).input_ids
    assert len(ids) > 150
    found = candidates.candidates([context], [word_spans(context)])[0]
    single = single_tokens(
        context, tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    )
    assert [row is not None for row in found] == [span in single for span in word_spans(context)]
    assert all(len(row) == 5 for row in found if row is not None)
    masks = 0
    for batch in inputs:
        assert batch.shape[1] == 34
        for row in batch.tolist():
            inside = row[1:-1]
            places = [i for i, token in enumerate(inside) if token == tokenizer.mask_token_id]
            masks += len(places)
            start = next(
                start
                for start in range(len(ids) - 31)
                if all(i in places or inside[i] == ids[start + i] for i in range(32))
            )
            for place in places:
                assert place >= 7 or start == 0
                assert place <= 32 - 8 or start == len(ids) - 32
    assert masks == sum(row is not None for row in found)


def test_short_text_gets_the_same_from_a_longer_model(bert: str, tmp_path: Path) -> None:
    context = CONTEXTS[0]
    copy = Path(shutil.copytree(bert, tmp_path / "copy"))
    settings_file = copy / "tokenizer_config.json"
    document = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**document, "model_max_length": 60}))
    words = word_spans(context)
    assert load(str(copy)).candidates([context], [words]) == load(bert).candidates([context], [words])


def test_words_of_other_scripts_are_found_and_unknown_ones_are_none(bert: str) -> None:
    context = "Νερό, вода & 水道 — lamp שלום"
    found = load(bert, k=999).candidates([context], [word_spans(context)])[0]
    assert [row is None for row in found] == [False, False, True, False, True]
    for row, own in zip(found, ("νερο", "вода", "", "lamp", ""), strict=True):
        if row is not None:
            assert {"νερο", "вода", "lamp", own} - set(row) == {own}


def test_candidates_are_distinct_whole_words_and_never_the_word_itself(either: str) -> None:
    found = load(either, k=10_000, masked_share=0.2).candidates(
        CONTEXTS, [word_spans(context) for context in CONTEXTS]
    )
    tokenizer = plain(either)[0]
    for context, rows in zip(CONTEXTS, found, strict=True):
        for (start, end), row in zip(word_spans(context), rows, strict=True):
            if row is not None:
                assert len(row) > 50
                assert all(word.isalpha() and len(word) > 1 for word in row)
                folded = [word.casefold() for word in row]
                assert len({*folded, context[start:end].casefold()}) == len(row) + 1
                assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in row[:20])


def test_accent_that_the_tokenizer_strips_makes_no_candidate(tmp_path: Path) -> None:
    folder = save(tmp_path, "BertForMaskedLM", wordpiece("ete"))
    assert "ete" in of_word(load(folder, k=999), "the lamp", (0, 3))
    assert "ete" not in of_word(load(folder, k=999), "Été lamp", (0, 3))


def test_cased_vocabulary_keeps_the_better_form_of_a_word(tmp_path: Path) -> None:
    folder = save(tmp_path, "BertForMaskedLM", wordpiece("Ship", "SHIP", "shIP", "Lamp", lower=False))
    words = of_word(load(folder, k=999), "the night", (4, 9))
    assert sum(word.casefold() == "ship" for word in words) == 1
    three = of_word(load(folder, k=3), "the night", (4, 9))
    assert three == words[:3]


def test_equally_likely_words_come_in_the_order_of_the_vocabulary(bert: str) -> None:
    tokenizer = plain(bert)[0]
    model = transformers.BertForMaskedLM.from_pretrained(bert)
    for weights in model.cls.parameters():
        torch.nn.init.zeros_(weights)
    found = of_word(MaskedCandidates(model, tokenizer, name="it", **CHOSEN), "the ship at night", (4, 8))
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert found == [piece for piece in pieces if piece.isalpha() and len(piece) > 1 and piece != "ship"][:5]


def test_text_that_spells_a_special_token_is_only_text(either: str, watch: Watch) -> None:
    candidates = load(either)
    inputs = watch(candidates)
    for token in ("[MASK]", "<mask>", "[SEP]", "</s>", "[PAD]"):
        context = f"oil {token} ship"
        assert None not in candidates.candidates([context], [[(0, 3)]])[0]
    special = set(plain(either)[0].all_special_ids) - {plain(either)[0].unk_token_id}
    for batch in inputs:
        for row in batch.tolist():
            assert [token for token in row[1:-1] if token in special] == [candidates._mask_id]


def test_empty_text_and_no_words_wanted_give_nothing(bert: str) -> None:
    candidates = load(bert)
    assert candidates.candidates([], []) == []
    assert candidates.candidates(["", "   ", "oil ship"], [[], [], []]) == [[], [], []]
    assert of_word(candidates, "oil \ud800 ship", (0, 3))


class Small:
    """A model with memory for so many tokens in a forward."""

    def __init__(self, candidates: MaskedCandidates, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = tokens
        self.asked: list[int] = []
        self.forward = candidates._logits.model.forward
        monkeypatch.setattr(candidates._logits.model, "forward", self)

    def __call__(self, input_ids: torch.Tensor) -> Any:
        self.asked.append(input_ids.numel())
        if input_ids.numel() > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.forward(input_ids=input_ids)


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_forward_that_lacks_memory_is_halved_and_candidates_stay(
    either: str, share: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = [word_spans(context) for context in CONTEXTS]
    candidates = load(either, masked_share=share)
    expected = candidates.candidates(CONTEXTS, wanted)
    small = Small(candidates, 200, monkeypatch)
    assert candidates.candidates(CONTEXTS, wanted) == expected
    assert len(caplog.records) == 1
    assert "batches are halved" in caplog.text
    small.asked.clear()
    assert candidates.candidates(CONTEXTS[:1], wanted[:1]) == expected[:1]
    assert max(small.asked) <= 200, "it is not tried again"
    assert len(caplog.records) == 1


def test_what_comes_after_the_forward_is_halved_as_well(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking the words needs more memory than a small model does."""
    wanted = [word_spans(CONTEXTS[0])]
    candidates = load(bert)
    expected = candidates.candidates(CONTEXTS[:1], wanted)
    likely = candidates._words.likely
    ranked: list[int] = []

    def small(logits: torch.Tensor, k: int) -> Any:
        if len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        ranked.append(len(logits))
        return likely(logits, k)

    monkeypatch.setattr(candidates._words, "likely", small)
    assert candidates.candidates(CONTEXTS[:1], wanted) == expected
    assert ranked


def test_window_that_lacks_memory_alone_is_refused_in_one_line(
    bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = load(bert)
    Small(candidates, 10, monkeypatch)
    with pytest.raises(InputError, match=r"^out of memory on cpu with a single window of \d+ .*fewer actors"):
        candidates.candidates(CONTEXTS[:1], [word_spans(CONTEXTS[0])])


def test_other_errors_of_a_forward_go_through(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = load(bert)

    def broken(input_ids: torch.Tensor) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(candidates._logits.model, "forward", broken)
    with pytest.raises(RuntimeError, match="size of tensor"):
        candidates.candidates(CONTEXTS[:1], [word_spans(CONTEXTS[0])])


@pytest.mark.parametrize("head_is_apart", [True, False])
def test_threads_compute_in_turns_and_find_what_one_finds(
    bert: str, head_is_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [word_spans(context) for context in CONTEXTS]
    candidates = load(bert, masked_share=0.15)
    candidates._logits.head_is_apart = head_is_apart
    expected = [
        candidates.candidates([text], [spans])[0] for text, spans in zip(CONTEXTS, wanted, strict=True)
    ]
    model = candidates._logits.model
    forward, inside, most = model.forward, 0, 0

    def slow(input_ids: torch.Tensor) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        output = forward(input_ids=input_ids)
        inside -= 1
        return output

    monkeypatch.setattr(model, "forward", slow)
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda text, spans: candidates.candidates([text], [spans])[0], CONTEXTS, wanted)
        assert [*found] == expected
    assert most == 1


ARCHITECTURES = ["Bert", "DistilBert", "Electra", "MPNet", "ModernBert"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_masked_tokens_reach_the_head_and_candidates_are_the_same(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = wordpiece()
    model = build(f"{architecture}ForMaskedLM", tokenizer)
    wanted = [word_spans(context) for context in CONTEXTS[:2]]
    quick = MaskedCandidates(model, tokenizer, name="it", **{**CHOSEN, "masked_share": 0.2})
    outputs: list[int] = []
    with monkeypatch.context() as patch:
        forward = model.forward

        def recorded(**inputs: Any) -> Any:
            output = forward(**inputs)
            outputs.append(output.logits[..., 0].numel())
            return output

        patch.setattr(model, "forward", recorded)
        found = quick.candidates(CONTEXTS[:2], wanted)
    assert sum(outputs) == sum(row is not None for rows in found for row in rows)
    quick._logits.head_is_apart = False
    assert quick.candidates(CONTEXTS[:2], wanted) == found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_of_a_model_in_half_precision_computes_in_fp32(architecture: str) -> None:
    model = build(f"{architecture}ForMaskedLM", wordpiece()).to(torch.bfloat16)
    ids = torch.arange(24).view(2, 12) % model.config.vocab_size
    with torch.inference_mode():
        states = model.base_model(ids).last_hidden_state[[0, 1], [3, 7]][None]
    logits = MaskedLogits(model)
    assert logits.head_is_apart
    found = logits(ids.numpy(), np.array([0, 1]), np.array([3, 7]), torch.clone)
    with torch.inference_mode():
        again = model.base_model(ids).last_hidden_state[[0, 1], [3, 7]][None]
        # What the head makes of the same states in twice the precision.
        for head in families.head_modules(model):
            head.double()._forward_pre_hooks.clear()
        hook = model.base_model.register_forward_hook(_replaced(states.double()))
        wanted = model(ids).logits[0]
        hook.remove()
    assert torch.equal(again, states), "the encoder stays as it was"
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def _replaced(states: torch.Tensor) -> Callable[..., Any]:
    """A hook that lets the head see these states."""

    def replace(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = states
        return output

    return replace


class Mixed(transformers.BertForMaskedLM):  # type: ignore[misc]
    """A head that looks at all tokens of a text."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        output = super().forward(input_ids=input_ids)
        output.logits = output.logits - output.logits.mean(dim=1, keepdim=True)
        return output


def test_head_that_looks_at_all_tokens_is_given_them(bert: str) -> None:
    tokenizer, reference = plain(bert)
    model = Mixed.from_pretrained(bert).eval()
    found = of_word(MaskedCandidates(model, tokenizer, name="it", **CHOSEN), "the ship at night", (4, 8))
    encoded = tokenizer("the [MASK] at night", return_tensors="pt")
    with torch.no_grad():
        logits = reference(**encoded).logits[0]
    ranked = (logits[2] - logits.mean(dim=0)).argsort(descending=True).tolist()
    words = [tokenizer.convert_ids_to_tokens(i) for i in ranked]
    assert found == [w for w in words if w.isalpha() and len(w) > 1 and w != "ship"][:5]


def test_model_without_a_head_for_masked_words_is_refused(tiny_bert: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tiny_bert}: has no head that predicts masked words .*cls\."):
        load(tiny_bert)
    with pytest.raises(InputError, match=r"absent: no such model folder"):
        load(str(tmp_path / "absent"))
    copy = Path(shutil.copytree(tiny_bert, tmp_path / "pickle"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin; weights are read from safetensors only"):
        load(str(copy))


def test_tokenizer_without_mask_token_is_refused(bert: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "maskless"))
    backend = plain(bert)[0].backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(copy)
    with pytest.raises(InputError, match="maskless: has no mask token"):
        load(str(copy))


def test_sentencepiece_is_refused_by_name(bert: str, tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("<mask>", 0.0), *((f"▁{word}", -1.0) for word in ("oil", "ship", "lamp"))]
    backend = Tokenizer(tokenizer_models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", unk_token="<unk>"
    )
    copy = Path(shutil.copytree(bert, tmp_path / "pieces"))
    tokenizer.save_pretrained(copy)
    with pytest.raises(InputError, match="pieces: the vocabulary is a SentencePiece one"):
        load(str(copy))


def test_tokenizer_of_another_model_is_refused(bert: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "other"))
    wordpiece("νερο", "γραμμα", "вода", "extra").save_pretrained(copy)
    with pytest.raises(InputError, match=r"other: its tokenizer has \d+ tokens .* the model \d+"):
        load(str(copy))


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"masked_share": 1.1}, {"masked_share": -0.1}, {"max_batch_tokens": 0}]
)
def test_number_out_of_range_is_refused(bert: str, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=" ".join(wrong)):
        load(bert, **wrong)


@given(st.lists(st.sampled_from(["lamp", "Zoë", "B2B", "水", "😀", "'", " ", "\n", "été", "-"])).map("".join))
@settings(deadline=None)
def test_token_that_stands_for_a_span_holds_all_of_its_text_and_nothing_else(context: str) -> None:
    tokenizer = bytelevel()
    encoded = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    single = single_tokens(context, encoded["offset_mapping"])
    for (start, end), number in single.items():
        assert tokenizer.decode(encoded["input_ids"][number]).strip() == context[start:end].strip() != ""
