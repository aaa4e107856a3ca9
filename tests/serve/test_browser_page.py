"""The page that reads in the browser, in a real one: the tokens, spans and scores of ``Reader``."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import browser as chromium
import numpy as np
import pytest
from browser import Page
from selenium.webdriver import Chrome

from tinyqa_ray.cli import main
from tinyqa_ray.configs import ExportConfig, WindowConfig
from tinyqa_ray.core import bundled, forms
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.datasets.squad import read_squad
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import read_settings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.ranks import best_of
from tinyqa_ray.reader.spans import readings

pytest.importorskip("onnx", reason="needs the extra cpu")
pytest.importorskip("onnxruntime", reason="needs the extra cpu")

from tinyqa_ray.export import export
from tinyqa_ray.serve.browser import build, runtime

PARAGRAPHS = read_squad(bundled.asset("squad2_dev.json"))
LIGHTHOUSE = "Edith Marlow built the lighthouse in 1871. A storm broke its lamp in 1902."
ZOO = "🦁🐘 The zoo at Brün\u0303 was founded by Zoë Núñez 👩‍🔬 in 1934; 東京 sent it two cranes 🦩."
LONG = " ".join(paragraph.context for paragraph in PARAGRAPHS[:6])
ASKED = [
    ("Who built the lighthouse?", LIGHTHOUSE),
    ("When did the storm break the lamp?", LIGHTHOUSE),
    ("Who was the first king of France?", LIGHTHOUSE),
    ("How much did the glass of the lamp cost?", LIGHTHOUSE),
    ("Who founded the zoo?", ZOO),
    ("What did 東京 send?", "\U0001d518\U0001d52b 🎉 " + ZOO),
    ("Who built the lighthouse?", LONG + " " + LIGHTHOUSE + " " + LONG),
    ("Who owns the moon?", LONG),
    ("Who built it?", ""),
    ("Who built it?", "\u200b \U0001f3fd"),
    *(
        (paragraph.questions[number].question, paragraph.context)
        for paragraph in PARAGRAPHS[::4]
        for number in (0, -1)
    ),
]
BLOCKS = (
    *((0x20, 0x7F), (0x00, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80)),
    *((0x1100, 0x1200), (0x1E00, 0x2070), (0x2000, 0x2C00), (0x3000, 0x3400), (0x4E00, 0x4F00)),
    *((0xAC00, 0xAD00), (0xF900, 0xFB50), (0xFE00, 0x10000), (0x1D400, 0x1D800), (0x1F300, 0x1FA00)),
    *((0x20000, 0x20100), (0xE0000, 0xE01F0)),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model in fp32, whose scores do not hang on how activations are rounded."""
    folder = str(tmp_path_factory.mktemp("export") / "fp32")
    export(ExportConfig(format="onnx", precision="fp32"), folder)
    return folder


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model in int8; its F1 is checked elsewhere."""
    folder = str(tmp_path_factory.mktemp("export") / "int8")
    few: dict[str, Any] = {"calibration_questions": 16, "check_questions": 8, "max_f1_drop": 100.0}
    export(ExportConfig(format="onnx", **few), folder)
    return folder


def built(exported: str, made: Path, precision: str = "fp32") -> Path:
    """A page; the test is skipped where npm or its registry is not there."""
    try:
        build(exported, str(made), precision=precision)
    except (StoreError, InputError) as error:
        if "npm" not in str(error):
            raise
        pytest.skip(str(error))
    return made


@pytest.fixture(scope="module")
def folder(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(exported, tmp_path_factory.mktemp("page") / "page")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a plain server of files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


browser = chromium.browser


def opened(browser: Chrome, url: str) -> Page:
    browser.set_script_timeout(200)
    chromium.resize(browser, 1200, 900)
    browser.get(url)
    page = Page(browser, patience_s=120)
    page.until(lambda: "parameters" in page.text("#info"))
    chromium.console_errors(browser)
    return page


@pytest.fixture
def page(browser: Chrome, url: str) -> Page:
    return opened(browser, url)


def later(browser: Chrome, expression: str, *arguments: Any) -> Any:
    """What a promise in the page gives; ``args`` are the arguments."""
    script = f"""
        const args = Array.from(arguments), done = args.pop();
        Promise.resolve().then(() => {expression}).then(
            made => done([made, null]), problem => done([null, problem.message]));
    """
    made, problem = browser.execute_async_script(script, *arguments)  # type: ignore[no-untyped-call]
    if problem is not None:
        raise RuntimeError(problem)
    return made


TOKENISE = """
(async () => {
  const { WordPiece } = await import(new URL('reader/wordpiece.js', document.baseURI).href);
  const json = async path => (await fetch(path)).json();
  const { characters, wordpiece } = await json('model/browser.json');
  const made = new WordPiece(characters, wordpiece, (await json('model/tokenizer.json')).model.vocab);
  return JSON.parse(args[0]).map(text => made.encode(text));
})()
"""


def texts() -> list[str]:
    """Real texts, strings drawn from all corners of Unicode, and every character of the first plane."""
    rng = random.Random(0)
    drawn = []
    for _ in range(600):
        blocks = rng.choices(BLOCKS, k=3)
        drawn.append("".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(60))))
    points = [point for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    every = [
        "".join(f"x{chr(each)}y " for each in points[at : at + 512]) for at in range(0, len(points), 512)
    ]
    real = [text for paragraph in PARAGRAPHS for text in (paragraph.context, paragraph.questions[0].question)]
    odd = [
        "",
        " ",
        "w" * 101,
        "é" * 100,
        "Zoë's don't-stop",
        "[CLS] [SEP] ##s",
        "e\u0301\u0301 \ud800x \udc00",
        ZOO,
    ]
    return [*odd, *real, *drawn, *every]


def test_tokens_and_places_are_those_of_the_tokenizer(page: Page, exported: str) -> None:
    asked = texts()
    found = later(page.browser, TOKENISE, json.dumps(asked))
    windower = Windower(
        pretrained.load_tokenizer(exported), WindowConfig(max_seq_len=384), cut_questions=False
    )
    ids = windower.questions(asked)
    for text, made in zip(asked, found, strict=True):
        assert made["ids"] == ids[text].tolist(), ascii(text[:80])
        offsets = windower.windows([("who", text)]).offsets[0]
        assert list(zip(made["starts"], made["ends"], strict=True)) == [
            tuple(row) for row in offsets.tolist()
        ]


DECODE = """
(async () => {
  const { ranked, reading } = await import(new URL('reader/spans.js', document.baseURI).href);
  const { texts, settings, top_k } = JSON.parse(args[0]);
  const found = texts.map(({ id, text, context, read }) => {
    const letters = Array.from(text), floats = values => Float32Array.from(values);
    const logits = read.map(each => ({ ...each, start: floats(each.start), end: floats(each.end) }));
    return { id, letters, reading: reading(logits, context, letters, 30, top_k) };
  });
  return ranked(found, settings, top_k);
})()
"""


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_answers_from_the_same_logits_are_those_of_the_reader(
    page: Page, exported: str, seed: int, top_k: int
) -> None:
    """Few words, short windows, and logits that are often equal: fragments, equal answers, ties."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    words = ["the mill", "Mill", "six", "hours", "almost", "-", ",", "“", "”", "\n", "and", "😀", "é", "a"]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(3)]
    windower = Windower(
        pretrained.load_tokenizer(exported),
        WindowConfig(max_seq_len=32, max_query_len=8, doc_stride=8),
        cut_questions=False,
    )
    cut = windower.windows([("how long", text) for text in texts])
    lengths = [int(at + count) + 1 for at, count in zip(cut.context_start, cut.context_tokens, strict=True)]
    starts, ends = ([draw.integers(-4, 9, n).astype(np.float32) / 2 for n in lengths] for _ in range(2))
    settings = replace(read_settings(exported), no_answer_threshold=[1.0, 0.3, 0.07][seed])
    found = readings(cut, starts, ends, max_answer_tokens=30, top_k=top_k, contexts=texts)
    names = list(map(str, range(len(texts))))
    body: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        offsets, mine = cut.offsets[number], np.flatnonzero(cut.pair == number)
        read = [
            {
                "window": {
                    "first": int(cut.first_token[w]),
                    "contextStart": int(cut.context_start[w]),
                    "contextTokens": int(cut.context_tokens[w]),
                },
                "start": starts[w].tolist(),
                "end": ends[w].tolist(),
            }
            for w in mine
        ]
        context = {"starts": offsets[:, 0].tolist(), "ends": offsets[:, 1].tolist()}
        body.append({"id": names[number], "text": text, "context": context, "read": read})
    asked = {"texts": body, "settings": asdict(settings), "top_k": top_k}
    replied = later(page.browser, DECODE, json.dumps(asked))
    wanted = best_of(found, texts, names, settings, top_k)
    assert [(each["answer"], each["start"], each["end"], each["document_id"]) for each in replied] == [
        (each.answer, each.start, each.end, each.document_id) for each in wanted
    ]
    for name in ("score", "na_prob"):
        assert [each[name] for each in replied] == pytest.approx([getattr(each, name) for each in wanted])


def compare(page: Page, exported: str, precision: str, score_differs: float) -> None:
    """Ask the page and the reader the same, and compare text, place and score."""
    reader = Reader.from_pretrained(exported, precision=precision)
    # int8 takes ranges from each batch: the page reads one window at a time.
    reader.engine.max_batch_tokens = 1
    assert len(reader.windower.windows([ASKED[6]])) > 3
    answered = 0
    for question, context in ASKED:
        body = {"question": question, "contexts": [{"id": "1", "text": context}], "top_k": 2}
        reply = later(page.browser, "call('v1/answer', { body: args[0] })", json.dumps(body))
        wanted = reader.answer(question, [context], document_ids=["1"], top_k=2)
        answered += wanted[0].answer is not None
        assert len(reply["answers"]) == len(wanted)
        found, best = reply["answers"][0], wanted[0]
        assert (found["answer"], found["start"], found["end"]) == (best.answer, best.start, best.end)
        assert found["score"] == pytest.approx(best.score, abs=score_differs)
        assert found["na_prob"] == pytest.approx(best.na_prob, abs=5 * score_differs)
    assert 5 < answered < len(ASKED) - 3, "questions of both kinds"


def test_answers_of_the_page_are_those_of_the_reader(page: Page, exported: str) -> None:
    compare(page, exported, "fp32", 1e-4)


@pytest.mark.slow
def test_answers_in_int8_are_those_of_the_reader(browser: Chrome, int8: str, tmp_path: Path) -> None:
    """Last digits of floats decide how some activations are rounded, so scores differ by what int8 loses."""
    with served(built(int8, tmp_path / "page", "int8")) as url:
        compare(opened(browser, url), int8, "int8", 0.03)


def test_answer_is_marked_in_the_page_and_nothing_leaves_it(page: Page, url: str) -> None:
    page.ask("Who founded the zoo?", LIGHTHOUSE, ZOO)
    assert page.text("#answer") == "Zoë Núñez"
    before, marked, _ = page.around_mark()
    assert (before, marked) == (ZOO[: ZOO.index("Zoë")], "Zoë Núñez")
    assert page.text("#where") == "In passage 2"
    assert "in this browser" in page.text("#latency")
    assert not page.one("#key-box").is_displayed()
    assert not page.one("#add-file").is_displayed()
    requested = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(each.startswith(url) for each in requested)
    assert chromium.console_errors(page.browser) == []


def test_question_that_leaves_no_room_is_refused_in_the_page(page: Page) -> None:
    page.ask("who " * 300, LIGHTHOUSE)
    assert "the question has 300 tokens, which leaves too little of a window of 384" in page.text("#error")


def test_newest_question_wins_in_the_page(page: Page) -> None:
    page.fill("Who owns the moon?", LONG * 3)
    page.one("#ask").click()
    page.ask("Who built the lighthouse?", LIGHTHOUSE)
    assert page.text("#answer") == "Edith Marlow"
    assert page.text("#error") == ""


def test_folder_that_is_not_whole_is_said_to_be_so(folder: Path, url: str, browser: Chrome) -> None:
    about = folder / "model/browser.json"
    about.rename(f"{about}.away")
    try:
        browser.get(url)
        page = Page(browser, patience_s=60)
        page.until(lambda: "browser.json cannot be fetched (404)" in page.text("#info"))
    finally:
        Path(f"{about}.away").rename(about)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("tiny_roberta", "its tokenizer is .* the page knows BERT's WordPiece only"),
        ("openvino", "needs one of"),
    ],
)
def test_model_that_the_page_cannot_read_is_refused(
    model: str,
    complaint: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "runtime", lambda: pytest.fail("nothing is fetched for it"))
    if model == "openvino":
        (tmp_path / "export").mkdir()
        (tmp_path / "export/openvino_model.xml").touch()
    else:
        config = ExportConfig(model=request.getfixturevalue(model), format="onnx", precision="fp32")
        export(config, str(tmp_path / "export"))
    with pytest.raises(InputError, match=complaint):
        build(str(tmp_path / "export"), str(tmp_path / "page"), precision="fp32")


def test_other_archive_than_the_pinned_one_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "runtime.tgz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"^runtime\.tgz: its sha512 is .* it is not used$"):
        runtime.unpack(tmp_path / "runtime.tgz", tmp_path)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only npm that is found; not there until it is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "npm"
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if program.exists() else None)
    return program


def test_npm_that_is_absent_or_cannot_fetch_is_one_line(npm: Path) -> None:
    with pytest.raises(InputError, match=r"npm is not installed; install Node\.js"):
        runtime.runtime()
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(StoreError, match=r"^npm could not fetch onnxruntime-web .* \(code ENOTFOUND\)"):
        runtime.runtime()
    kept = bundled.cache() / "browser"
    assert [path.name for path in kept.iterdir() if path.is_dir()] == [], "nothing half is left"


def test_cache_folder_that_cannot_be_written_is_one_line(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(npm))
    with pytest.raises(InputError, match=r"onnxruntime-web cannot be kept there .* set XDG_CACHE_HOME"):
        runtime.runtime()


def test_form_for_the_page_is_one_that_every_processor_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedError(Exception):
        pass

    def made(model: str, name: str, *, portable: bool) -> str:
        raise AskedError(model, name, portable)

    monkeypatch.setattr(forms, "made", made)
    with pytest.raises(AskedError) as asked:
        build(bundled.MODEL, str(tmp_path / "page"))
    assert asked.value.args == (bundled.MODEL, "onnx-int8", True)


def test_command_writes_the_page(
    exported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ort").mkdir()
    for name in runtime.FILES:
        (tmp_path / "ort" / name).write_text(name)
    monkeypatch.setattr(runtime, "runtime", lambda: tmp_path / "ort")
    words = ["--model", exported, "--precision", "fp32", "--output", str(tmp_path / "page")]
    main.main(["browser", *words])
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"
    written = {path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*.*")}
    assert {
        "index.html",
        "reader/worker.js",
        "model/onnx/model.onnx",
        "model/browser.json",
    } <= written


@pytest.mark.slow
def test_transformers_js_takes_the_folder(int8: str, tmp_path: Path) -> None:
    """Its q8 is ``onnx/model_quantized.onnx``; it gives no offsets, so its tokens and logits are compared."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    package = "@huggingface/transformers@4.3.2"
    installed = subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-save", "--prefix", str(tmp_path), package],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"npm could not install {package}: {installed.stderr[-200:]}")
    (tmp_path / "models").mkdir()
    shutil.copytree(int8, tmp_path / "models/mini")
    script = tmp_path / "ask.mjs"
    script.write_text(
        """
        import { AutoModelForQuestionAnswering, AutoTokenizer, env } from '@huggingface/transformers';
        env.allowRemoteModels = false;
        env.localModelPath = process.argv[2];
        const [question, text] = process.argv.slice(3);
        const tokenizer = await AutoTokenizer.from_pretrained('mini');
        const model = await AutoModelForQuestionAnswering.from_pretrained('mini', { dtype: 'q8' });
        const inputs = tokenizer(question, { text_pair: text });
        const { start_logits, end_logits } = await model(inputs);
        const numbers = each => Array.from(each.data, Number);
        console.log(JSON.stringify({
          ids: numbers(inputs.input_ids), start: numbers(start_logits), end: numbers(end_logits) }));
        """
    )
    question, context = "Who founded the zoo?", ZOO
    ran = subprocess.run(
        ["node", str(script), f"{tmp_path}/models", question, context],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    made = json.loads(ran.stdout.splitlines()[-1])
    reader = Reader.from_pretrained(int8)
    windows = reader.windower.windows([(question, context)])
    assert made["ids"] == windows.input_ids[0].tolist()
    (start,), (end,) = reader.engine.logits(windows)
    assert made["start"] == pytest.approx(start.tolist(), abs=0.05)
    assert made["end"] == pytest.approx(end.tolist(), abs=0.05)
