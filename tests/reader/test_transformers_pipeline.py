from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader.transformers_pipeline import pipeline
from tinyqa_ray.reader.transformers_pipeline.pipeline import QuestionAnsweringPipeline
from tinyqa_ray.reader.transformers_pipeline.spans import pooled, top_spans

ROWS = [row for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
CONTEXTS = [row["context"] for row in ROWS]
PAIRS = [{"question": qa["question"], "context": row["context"]} for row in ROWS for qa in row["qas"]]
WHO = "Who built the lighthouse?"
GOLDEN = ["default", "impossible", "long_documents", "odd_text", "odd_text_impossible"]
GOLDEN += ["top5_short_windows", "unaligned"]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def qa(request: pytest.FixtureRequest) -> QuestionAnsweringPipeline:
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return pipeline("question-answering", folder, device="cpu", max_seq_len=48, doc_stride=8)


@pytest.fixture(scope="module")
def bert(tiny_bert: str) -> QuestionAnsweringPipeline:
    return pipeline("question-answering", model=tiny_bert, device=-1)


@pytest.fixture(scope="module")
def trained(shared: Path) -> QuestionAnsweringPipeline:
    return pipeline("question-answering", str(shared / "models/minilm-squad2"), device="cpu")


def as_list(result: Any) -> list[dict[str, Any]]:
    return result if isinstance(result, list) else [result]


@pytest.mark.parametrize("name", GOLDEN)
def test_answers_equal_those_of_transformers(
    shared: Path, trained: QuestionAnsweringPipeline, name: str
) -> None:
    golden = json.loads((shared / f"golden/pipeline/{name}.json").read_text(encoding="utf-8"))
    # The first cases of the large files: all of them take a minute.
    cases = golden["cases"][:12] if len(golden["cases"][0]["context"]) < 2000 else golden["cases"][:4]
    found = trained(
        [{"question": c["question"], "context": c["context"]} for c in cases], **golden["parameters"]
    )
    for case, result in zip(cases, found, strict=True):
        for wanted, answer in zip(as_list(case["result"]), as_list(result), strict=True):
            assert answer["score"] == pytest.approx(wanted["score"], abs=1e-4)
            assert {**answer, "score": 0} == {**wanted, "score": 0}, case["question"]


ODD = [
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
    "[CLS]",
    "</s>",
]
odd_text = st.text(min_size=1, max_size=40) | st.lists(st.sampled_from(ODD), min_size=1, max_size=40).map(
    "".join
)


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(st.tuples(odd_text, odd_text), min_size=1, max_size=3),
    top_k=st.integers(1, 4),
    impossible=st.booleans(),
    align=st.booleans(),
)
def test_answer_is_the_text_at_its_offsets(
    qa: QuestionAnsweringPipeline, pairs: list[tuple[str, str]], top_k: int, impossible: bool, align: bool
) -> None:
    questions, contexts = [q for q, _ in pairs], [c for _, c in pairs]
    # A question that leaves its context no room is refused.
    assume(all(len(question.encode("utf-8", "surrogatepass")) < 100 for question in questions))
    found = qa(
        question=questions,
        context=contexts,
        top_k=top_k,
        handle_impossible_answer=impossible,
        align_to_words=align,
        max_seq_len=128,
    )
    results = [found] if len(pairs) == 1 else found
    assert len(results) == len(pairs)
    for context, result in zip(contexts, results, strict=True):
        answers = as_list(result)
        assert 1 <= len(answers) <= top_k
        assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
        for answer in answers:
            assert list(answer) == ["score", "start", "end", "answer"]
            assert context[answer["start"] : answer["end"]] == answer["answer"]
            assert answer["answer"] or impossible or len(answers) == 1


def test_every_call_form_gives_the_same_answer(bert: QuestionAnsweringPipeline) -> None:
    item = {"question": WHO, "context": CONTEXTS[0]}
    wanted = bert(question=WHO, context=CONTEXTS[0])
    assert isinstance(wanted, dict)
    assert bert(item) == bert(data=item) == bert(WHO, CONTEXTS[0]) == wanted
    # transformers unwraps a list of one.
    assert bert([item]) == bert(question=[WHO], context=[CONTEXTS[0]]) == bert((item,)) == wanted
    assert bert(one for one in (item,)) == [wanted]
    for many in (
        bert([item, item]),
        bert(item, item),
        bert(data=[item, item]),
        bert(one for one in (item, item)),
        bert(question=[WHO, WHO], context=CONTEXTS[0]),
        bert(question=(WHO, WHO), context=(CONTEXTS[0], CONTEXTS[0])),
        bert({"question": [WHO, WHO], "context": CONTEXTS[0]}),
    ):
        assert many == [wanted, wanted]
    assert bert([]) == []


def test_top_k_above_one_gives_a_list_best_first(bert: QuestionAnsweringPipeline) -> None:
    three = bert(question=WHO, context=CONTEXTS[0], top_k=3)
    assert isinstance(three, list)
    assert len(three) == 3
    assert three[0] == bert(question=WHO, context=CONTEXTS[0])
    assert bert([PAIRS[0]], top_k=3) == bert(PAIRS[0], top_k=3)


def test_single_answer_is_no_list_as_in_transformers(bert: QuestionAnsweringPipeline) -> None:
    assert bert(question=WHO, context="owl", top_k=3) == bert(question=WHO, context="owl")


def test_options_of_the_pipeline_hold_until_a_call_changes_them(tiny_bert: str) -> None:
    qa = pipeline("question-answering", tiny_bert, device="cpu", top_k=2)
    assert len(qa(PAIRS[0])) == 2
    assert len(qa(PAIRS[0], top_k=None)) == 2
    assert isinstance(qa(PAIRS[0], top_k=1), dict)


def test_answers_do_not_depend_on_what_is_asked_beside_them(
    qa: QuestionAnsweringPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = PAIRS[:9]
    together = qa(pairs, top_k=2)
    monkeypatch.setattr("tinyqa_ray.reader.reader._CHARACTERS", 400)
    monkeypatch.setattr("tinyqa_ray.reader.reader._PAIRS", 3)
    for pair, wanted, chunked in zip(pairs, together, qa(pairs, top_k=2, batch_size=2), strict=True):
        for answers in (qa(pair, top_k=2), chunked):
            assert [{**a, "score": 0} for a in answers] == [{**a, "score": 0} for a in wanted]
            assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in wanted], rel=1e-4)


def test_batch_size_is_the_most_windows_of_a_forward(
    bert: QuestionAnsweringPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = bert.engine.run

    def counted(windows: Any, batches: Any) -> Any:
        batches = list(batches)
        sizes.extend(len(batch) for batch in batches)
        return run(windows, batches)

    monkeypatch.setattr(bert.engine, "run", counted)
    bert(PAIRS[:7], batch_size=3)
    assert sizes == [3, 3, 1]


def test_aligned_answers_do_not_cut_words(qa: QuestionAnsweringPipeline) -> None:
    def cuts(answer: dict[str, Any], context: str) -> bool:
        around = context[max(0, answer["start"] - 1) : answer["start"] + 1], context[answer["end"] - 1 :][:2]
        return any(len(two) == 2 and two.isalpha() for two in around)

    parameters: dict[str, Any] = {"top_k": 5, "max_seq_len": 200}
    aligned, raw = qa(PAIRS, **parameters), qa(PAIRS, align_to_words=False, **parameters)
    contexts = [pair["context"] for pair in PAIRS]
    assert not any(cuts(a, c) for answers, c in zip(aligned, contexts, strict=True) for a in answers)
    assert any(cuts(a, c) for answers, c in zip(raw, contexts, strict=True) for a in answers)


def test_empty_answer_is_given_only_when_impossible_is_handled(bert: QuestionAnsweringPipeline) -> None:
    forced = [answer for answers in bert(PAIRS, top_k=40) for answer in answers]
    free = bert(PAIRS, top_k=400, handle_impossible_answer=True)
    assert all(answer["answer"] for answer in forced)
    for answers in free:
        empty = [answer for answer in answers if not answer["answer"]]
        # transformers adds one of score 0 where a window has fewer spans than are asked for.
        assert [(answer["start"], answer["end"]) for answer in empty] in ([(0, 0)], [(0, 0), (0, 0)])
        assert all(answer["score"] == 0.0 for answer in empty[1:])


def test_blank_context_gets_the_empty_answer(bert: QuestionAnsweringPipeline) -> None:
    assert bert(question=WHO, context=" \n ") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    found = bert(question=WHO, context=" ", handle_impossible_answer=True, top_k=2)
    assert found == {"score": pytest.approx(1.0), "start": 0, "end": 0, "answer": ""}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"question": "", "context": "owl"}, "`question` cannot be empty"),
        ({"question": "Who?", "context": ""}, "`context` cannot be empty"),
        ({"question": ["Who?", ""], "context": "owl"}, "`question` cannot be empty"),
        ({"question": "Who?"}, "`context` cannot be None or missing"),
        ({"question": "Who?", "context": 3}, "`context` is a int"),
        ({"question": ["a", "b"], "context": ["c", "d", "e"]}, r"2 question\(s\), but 3 context\(s\)"),
        ({"data": "Who?"}, "the input is a str"),
        ({"data": 3}, "the input is a int"),
        ({"data": [("Who?", "owl")]}, "an input of the list is a tuple"),
        ({"data": {"question": "Who?"}}, "`context` cannot be None or missing"),
    ],
)
def test_inputs_of_another_form_are_refused(
    bert: QuestionAnsweringPipeline, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bert(**call)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"topk": 3}, "unknown keyword 'topk'; allowed are top_k, doc_stride, .*batch_size"),
        ({"top_k": 0}, r"top_k parameter should be an integer >= 1 \(got 0\)"),
        ({"max_answer_len": "long"}, r"max_answer_len parameter should be an integer >= 1 \(got 'long'\)"),
        ({"max_seq_len": 4000}, "max_seq_len is 4000, but the model reads at most 512 tokens"),
        ({"max_seq_len": 64, "doc_stride": 64}, "doc_stride 64; windows would not advance"),
    ],
)
def test_bad_option_is_refused_by_name(
    bert: QuestionAnsweringPipeline, tiny_bert: str, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bert(PAIRS[0], **option)
    with pytest.raises(InputError, match=message):
        pipeline("question-answering", tiny_bert, **option)


def test_other_task_is_refused(tiny_bert: str) -> None:
    with pytest.raises(InputError, match="unknown task 'ner'; the only one is 'question-answering'"):
        pipeline("ner", tiny_bert)


def test_question_longer_than_the_window_is_refused_with_its_length(qa: QuestionAnsweringPipeline) -> None:
    long = "owl " * 100
    with pytest.raises(InputError, match=r"question of \d+ tokens leaves 0 context tokens of max_seq_len 48"):
        qa(question=long, context=CONTEXTS[0])


def test_long_question_is_read_whole(bert: QuestionAnsweringPipeline) -> None:
    question = "the " * 200
    other = "the " * 199 + "owl "
    assert bert(question=question, context=CONTEXTS[4]) != bert(question=other, context=CONTEXTS[4])
    # Beside it doc_stride has no room, but a context that needs one window does not use it.
    assert bert(question="the " * 300, context="owl")["answer"] == "owl"
    with pytest.raises(InputError, match="not more than doc_stride 128"):
        bert(question="the " * 300, context=CONTEXTS[4] * 2)


def test_loaded_model_brings_its_tokenizer(tiny_bert: str, bert: QuestionAnsweringPipeline) -> None:
    model = pretrained.load_qa_model(tiny_bert)
    with pytest.raises(InputError, match="give it with tokenizer="):
        pipeline("question-answering", model)
    wanted = bert(PAIRS[0])
    # The weights of a model that others hold are never packed, so the last digits may differ.
    wanted["score"] = pytest.approx(wanted["score"], rel=1e-4)
    for tokenizer in (tiny_bert, pretrained.load_tokenizer(tiny_bert)):
        assert pipeline("question-answering", model, tokenizer=tokenizer)(PAIRS[0]) == wanted


def test_long_context_is_read_to_its_end(tmp_path: Path) -> None:
    folder = tiny.save_qa_model(tmp_path / "small", layers=1, hidden=8, heads=1)
    qa = pipeline("question-answering", folder, device="cpu")
    text = (" ".join(CONTEXTS) + " ") * 230
    assert len(text) > 300_000
    # Unlike all other words: only the last window can hold them.
    ending = "zq xw vj"
    answers = qa("When does the owl hunt?", text + ending, top_k=2000, max_answer_len=1)
    assert {"zq", "xw", "vj"} <= {answer["answer"] for answer in answers}
    assert all((text + ending)[a["start"] : a["end"]] == a["answer"] for a in answers)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), tokens=st.integers(2, 12), longest=st.integers(1, 14), k=st.integers(1, 200))
def test_top_spans_equal_those_of_a_search_one_by_one(
    data: st.DataObject, tokens: int, longest: int, k: int
) -> None:
    rows = data.draw(st.integers(1, 3))
    begin = np.array(data.draw(st.lists(st.integers(1, tokens - 1), min_size=rows, max_size=rows)), np.int32)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = rng.normal(0, 3, (2, rows, tokens)).astype(np.float32)
    shown = np.arange(tokens) >= begin[:, None]
    shares = shown | (np.arange(tokens) == 0)
    found = top_spans(logits[0], logits[1], shares, begin, max_answer_tokens=longest, k=k)
    for row in range(rows):
        p, q = (np.where(shares[row], np.exp(side[row].astype(float)), 0) for side in logits)
        p, q = p / p.sum(), q / q.sum()
        assert found.null[row] == pytest.approx(p[0] * q[0])
        one_by_one = [
            (p[a] * q[b], a - begin[row], b - begin[row])
            for a in range(begin[row], tokens)
            for b in range(a, min(tokens, a + longest))
        ]
        wanted = sorted(one_by_one, reverse=True)[:k]
        real = np.isfinite(found.log_probability[row])
        scores = np.exp(found.log_probability[row, real])
        assert scores == pytest.approx([score for score, _, _ in wanted])
        assert list(zip(found.first[row, real], found.last[row, real], strict=True)) == [
            w[1:] for w in wanted
        ]


def test_certain_logits_do_not_underflow_to_no_answer() -> None:
    logits = np.array([[900.0, -5.0, 0.0]], np.float32)
    every = np.ones((1, 3), bool)
    found = top_spans(logits, logits, every, np.array([1], np.int32), max_answer_tokens=2, k=1)
    assert (found.first.tolist(), found.last.tolist(), found.null.tolist()) == ([[1]], [[1]], [1.0])


def test_same_text_is_one_answer_with_the_sum_of_the_scores() -> None:
    found = pooled("Owl or owl", [(0, 3, 0.25), (4, 6, 0.375), (7, 10, 0.5)], 0.5, 3)
    assert found == [
        {"score": 0.75, "start": 0, "end": 3, "answer": "Owl"},
        {"score": 0.5, "start": 0, "end": 0, "answer": ""},
        {"score": 0.375, "start": 4, "end": 6, "answer": "or"},
    ]


def test_pipeline_is_offered_by_the_package_without_loading_torch_first() -> None:
    code = (
        "import sys, tinyqa_ray; assert 'torch' not in sys.modules; "
        "from tinyqa_ray import pipeline; print(pipeline.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tinyqa_ray.reader.transformers_pipeline.pipeline"
