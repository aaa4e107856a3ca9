from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, write_settings
from tinyqa_ray.reader import Answer, Reader
from tinyqa_ray.reader.answers import answers
from tinyqa_ray.reader.spans import Reading, Span

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
SMALL = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=16)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def reader(request: pytest.FixtureRequest) -> Reader:
    return Reader.from_pretrained(
        request.getfixturevalue(f"tiny_{request.param}"), window=SMALL, device="cpu"
    )


odd_text = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [
            "owl",
            "  ",
            "\n",
            "\u00a0",
            "📚",
            "👩‍👧",
            "e\u0301",
            "\u0301",
            "東京",
            "각",
            "\ud83d",
            "\ude00",
            "İ",
            "ﬁ",
            "[SEP]",
            "</s>",
        ]
    ),
    max_size=40,
).map("".join)


@settings(deadline=None, max_examples=30)
@given(
    pairs=st.lists(st.tuples(odd_text.map(lambda text: "Who " + text), odd_text), max_size=4),
    top_k=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_answer_is_where_it_says(
    reader: Reader, pairs: list[tuple[str, str]], top_k: int, threshold: float
) -> None:
    found = reader.answer_many(pairs, top_k=top_k, threshold=threshold)
    assert len(found) == len(pairs)
    for (_, context), made in zip(pairs, found, strict=True):
        assert 1 <= len(made) <= top_k
        for answer in made:
            if answer.error is not None:
                assert "tokens, which leaves too little" in answer.error
            elif answer.answer is None:
                assert (answer.start, answer.end, answer.score) == (0, 0, answer.na_prob)
            else:
                assert answer.answer == context[answer.start : answer.end] != ""
            assert 0 <= answer.score <= 1


def same(one: list[Answer], two: list[Answer]) -> bool:
    places = [[(answer.answer, answer.start, answer.end) for answer in made] for made in (one, two)]
    scores = [[value for answer in made for value in (answer.score, answer.na_prob)] for made in (one, two)]
    return places[0] == places[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_batch_gives_the_answers_of_one_by_one_in_order(reader: Reader) -> None:
    questions = ["Who built the lighthouse?", "When?", "Why does rye bread keep?"]
    pairs = [(question, context) for context in [*CONTEXTS, "", "owl"] for question in questions]
    together = reader.answer_many(pairs, top_k=2, threshold=0.5)
    alone = [reader.answer(*pair, top_k=2, threshold=0.5) for pair in pairs]
    assert all(same(one, two) for one, two in zip(together, alone, strict=True))
    backwards = reader.answer_many(pairs[::-1], top_k=2, threshold=0.5)
    assert all(same(one, two) for one, two in zip(together, backwards[::-1], strict=True))


def test_many_pairs_are_read_in_chunks_without_a_seam(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("Who?", context) for context in CONTEXTS] + [("When?", context) for context in CONTEXTS[:3]]
    whole = reader.answer_many(pairs, threshold=1.0)
    monkeypatch.setattr("tinyqa_ray.reader.reader._PAIRS", 3)
    chunked = reader.answer_many(pairs, threshold=1.0)
    assert all(same(one, two) for one, two in zip(whole, chunked, strict=True))


def test_repeated_pairs_get_equal_answers(reader: Reader) -> None:
    one, other, again = reader.answer_many(
        [("Who?", CONTEXTS[0]), ("When?", CONTEXTS[1]), ("Who?", CONTEXTS[0])], threshold=1.0
    )
    assert one == again != other


def test_each_text_of_a_call_is_tokenised_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised: list[str] = []
    encode = Windower._encode

    def watched(windower: Windower, texts: Sequence[str]) -> Any:
        tokenised.extend(texts)
        return encode(windower, texts)

    monkeypatch.setattr(Windower, "_encode", watched)
    questions, contexts = ["Who?", "When?"], CONTEXTS[:3]
    reader.answer_many([(question, context) for question in questions for context in contexts] * 2)
    assert sorted(tokenised) == sorted([*questions, *contexts])
    tokenised.clear()
    reader.answer("Who?", contexts)
    assert sorted(tokenised) == sorted(["Who?", *contexts])


def test_nothing_asked_is_nothing_answered(reader: Reader) -> None:
    assert reader.answer_many([]) == []


def test_threshold_one_never_abstains_where_there_is_text(reader: Reader) -> None:
    for made in reader.answer_many([("Who?", context) for context in CONTEXTS], threshold=1.0):
        assert made[0].answer is not None


@pytest.mark.parametrize("context", ["", "   "])
def test_context_without_text_has_no_answer_at_any_threshold(reader: Reader, context: str) -> None:
    assert reader.answer("Who?", context, threshold=1.0) == [Answer(None, 1.0, 0, 0, 1.0)]


def test_spaces_do_not_hide_an_answer(reader: Reader) -> None:
    contexts = ["owl  owl   mice", "  owl", "owl    worms   ", "     mice    "]
    for made in reader.answer_many([("Who?", context) for context in contexts], threshold=1.0):
        assert made[0].answer is not None
        assert made[0].answer.strip()


def test_threshold_zero_always_abstains(reader: Reader) -> None:
    for made in reader.answer_many([("Who?", context) for context in CONTEXTS], threshold=0.0, top_k=2):
        assert made[0].answer is None
        assert made[0].score == made[0].na_prob
        assert made[1].answer is not None


def test_models_own_threshold_is_used_when_none_is_given(tiny_bert: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    for threshold, abstains in ((0.0, True), (1.0, False)):
        write_settings(str(folder), ModelSettings(no_answer_threshold=threshold))
        (answer,) = Reader.from_pretrained(str(folder)).answer("Who?", CONTEXTS[0])
        assert (answer.answer is None) == abstains


@pytest.mark.parametrize(
    ("question", "context", "error"),
    [
        ("", "owl", "the question is empty; ask something"),
        (" \n\t", "owl", "the question is empty; ask something"),
        (None, "owl", "the question is None, not a text"),
        ("Who?", None, "the context is None, not a text"),
        ("Who?", b"owl", "the context is a bytes, not a text"),
        ("who " * 60, "owl", "the question has 60 tokens"),
    ],
)
def test_pair_that_cannot_be_asked_is_named_and_its_neighbours_answered(
    reader: Reader, question: Any, context: Any, error: str
) -> None:
    good = [("Who?", text) for text in CONTEXTS[:2]]
    found = reader.answer_many([good[0], (question, context), good[1]], threshold=1.0)
    (bad,) = found.pop(1)
    assert found == reader.answer_many(good, threshold=1.0)
    assert bad.error is not None
    assert bad.error.startswith(error) or (error.startswith("the question has") and "tokens" in bad.error)
    assert (bad.answer, bad.score, bad.start, bad.end) == (None, 0.0, 0, 0)
    if not isinstance(context, str):
        assert reader.answer("Who?", [CONTEXTS[0], context])[1].error == error
    else:
        with pytest.raises(InputError, match="question"):
            reader.answer(question, context)


def test_question_that_leaves_room_is_not_cut(tiny_bert: str) -> None:
    whole, cut = (
        Reader.from_pretrained(tiny_bert, window=SMALL, cut_questions=cut_questions)
        for cut_questions in (False, True)
    )
    long = "who " * 25
    assert whole.windower.windows([(long, CONTEXTS[0])]).context_start[0] == 27
    assert cut.windower.windows([(long, CONTEXTS[0])]).context_start[0] == SMALL.max_query_len + 2
    assert whole.answer(long, CONTEXTS[0], threshold=1.0)[0].answer


def test_context_of_megabytes_is_read_to_its_end(tiny_bert: str) -> None:
    reader = Reader.from_pretrained(tiny_bert, window=WindowConfig(max_seq_len=512, doc_stride=0))
    text = " ".join(CONTEXTS)
    huge = text * (1_000_000 // len(text))
    (answer,), (small,) = reader.answer_many([("Who?", huge), ("Who?", CONTEXTS[0])], threshold=1.0)
    assert answer.answer == huge[answer.start : answer.end] != ""
    (best,) = reader.read([("Who?", huge)])
    assert best.spans[0].score >= reader.read([("Who?", text)])[0].spans[0].score - 1e-4
    assert same([small], reader.answer("Who?", CONTEXTS[0], threshold=1.0))


def test_several_contexts_are_ranked_together_and_named(reader: Reader) -> None:
    alone = [reader.answer("Who?", context, threshold=1.0)[0] for context in CONTEXTS]
    found = reader.answer("Who?", CONTEXTS, top_k=3, threshold=1.0)
    assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)
    best = max(alone, key=lambda answer: answer.score)
    assert found[0].answer == best.answer
    assert CONTEXTS[int(found[0].document_id or "")] == CONTEXTS[alone.index(best)]
    named = reader.answer("Who?", CONTEXTS[:2], document_ids=["a", "b"], threshold=1.0)
    assert named[0].document_id in ("a", "b")
    assert reader.answer("Who?", CONTEXTS[0], threshold=1.0)[0].document_id is None


def test_several_contexts_abstain_only_together(reader: Reader) -> None:
    probs = sorted(reader.answer("Who?", context)[0].na_prob for context in CONTEXTS)
    assert probs[0] < probs[-1]
    between = (probs[0] + probs[1]) / 2
    assert reader.answer("Who?", CONTEXTS, threshold=between)[0].answer is not None
    none, second = reader.answer("Who?", CONTEXTS, threshold=probs[0] / 2, top_k=2)
    assert none.answer is None
    assert none.na_prob == pytest.approx(probs[0], abs=1e-5)
    assert second.answer is not None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"max_answer_tokens": 0}, "max_answer_tokens is 0"),
        ({"threshold": 1.5}, r"threshold is 1.5; it must lie in \[0, 1\]"),
        ({"document_ids": ["a"]}, "1 document_ids, but 2 contexts"),
    ],
)
def test_option_out_of_range_is_refused(reader: Reader, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        reader.answer("Who?", CONTEXTS[:2], **options)


def test_no_context_at_all_is_refused(reader: Reader) -> None:
    with pytest.raises(InputError, match="there is no context"):
        reader.answer("Who?", [])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"precision": "fp8"}, "must be one of auto, fp32, bf16, fp16, int8"),
        ({"precision": "int8"}, "run tinyqa export --precision int8"),
        ({"precision": "fp16", "device": "cpu"}, "is for GPUs"),
        ({"device": "toaster"}, "device is 'toaster'"),
        ({"device": "cuda:99"}, "torch sees"),
    ],
)
def test_precision_or_device_that_is_not_there_is_refused(
    tiny_bert: str, options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        Reader.from_pretrained(tiny_bert, **options)


def test_bf16_reads_about_the_same(tiny_bert: str, has: Callable[..., None]) -> None:
    has("bf16")
    exact, half = (Reader.from_pretrained(tiny_bert, device="cpu", precision=p) for p in ("fp32", "bf16"))
    asked = [("Who?", context) for context in CONTEXTS[:3]]
    for one, two in zip(exact.read(asked), half.read(asked), strict=True):
        assert one.null_score == pytest.approx(two.null_score, abs=0.05)
        assert one.null_score != two.null_score


def test_other_windows_share_the_model(reader: Reader) -> None:
    wide = reader.windowed(WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=16))
    assert wide.engine is reader.engine
    assert wide.windower.config.max_seq_len == 96
    assert reader.windower.config == SMALL


@pytest.mark.parametrize(("temperature", "shift"), [(0.5, 0.0), (4.0, 3.0)])
def test_scale_moves_scores_but_not_answers(temperature: float, shift: float) -> None:
    reading = Reading((Span(0, 3, 2.0), Span(4, 5, -1.0)), 0.0)
    plain = answers(reading, "owl x", ModelSettings(), 2)
    warm = answers(reading, "owl x", ModelSettings(temperature=temperature, score_shift=shift), 2)
    assert [a.answer for a in plain] == [a.answer for a in warm]
    assert warm[0].score == pytest.approx(1 / (1 + math.exp(-(2 - shift) / temperature)))
    assert warm[0].na_prob == plain[0].na_prob == reading.na_prob


@pytest.mark.parametrize(
    ("null", "threshold", "abstains"),
    [(1.0, 0.5, True), (0.0, 0.5, False), (-1.0, 0.5, False), (99.0, 1.0, False)],
)
def test_pair_abstains_only_above_the_threshold(null: float, threshold: float, abstains: bool) -> None:
    reading = Reading((Span(0, 3, 0.0), Span(4, 5, -2.0)), null)
    made = answers(reading, "owl x", ModelSettings(no_answer_threshold=threshold), 3)
    assert [answer.answer for answer in made] == ([None] if abstains else []) + ["owl", "x"]
    spans = [answer for answer in made if answer.answer]
    assert spans[0].score == pytest.approx(1 - reading.na_prob)
    assert spans[0].score >= spans[1].score


def test_window_shrinks_to_a_small_model(tmp_path: Path, tiny_bert: str) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "copy")
    with pytest.raises(InputError, match="reads at most 512 tokens"):
        Reader.from_pretrained(str(folder), window=WindowConfig(max_seq_len=513))
    small = pretrained.load_qa_model(tiny_bert)
    small.bert.embeddings.position_embeddings.weight.data = (
        small.bert.embeddings.position_embeddings.weight.data[:96].clone()
    )
    small.config.max_position_embeddings = 96
    small.save_pretrained(folder)
    reader = Reader.from_pretrained(str(folder))
    assert reader.windower.config.max_seq_len == 96
    (answer,) = reader.answer("Who?", " ".join(CONTEXTS), threshold=1.0)
    assert answer.answer is not None


def without_head(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer"),
        (without_head, "has no question-answering head"),
        (pickled, r"only pytorch_model\.bin"),
        (remove("config.json"), r"has no config\.json"),
        (shutil.rmtree, "no such model folder"),
    ],
)
def test_unusable_folder_is_refused_in_one_line(
    family: str, spoil: Callable[[Path], None], complaint: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = shutil.copytree(request.getfixturevalue(f"tiny_{family}"), tmp_path / "spoiled")
    spoil(Path(folder))
    with pytest.raises(InputError, match=rf"^{folder}: [^\n]*{complaint}[^\n]*$"):
        Reader.from_pretrained(str(folder))


def test_answers_equal_those_of_the_transformers_pipeline(shared: Path) -> None:
    document: Any = json.loads((shared / "golden/pipeline/default.json").read_text(encoding="utf-8"))
    reader = Reader.from_pretrained(str(shared / "models/minilm-squad2"), device="cpu")
    cases = document["cases"]
    found = reader.answer_many(
        [(case["question"], case["context"]) for case in cases], threshold=1.0, max_answer_tokens=15
    )
    for case, (answer,) in zip(cases, found, strict=True):
        expected = case["result"]
        assert (answer.answer, answer.start, answer.end) == (
            expected["answer"],
            expected["start"],
            expected["end"],
        )
