from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import browser as chromium
import pytest
from browser import Page
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

import tinyqa_ray

PAGE = Path(tinyqa_ray.__file__).with_name("serve") / "page.html"
LIGHTHOUSE = "Edith Marlow built the lighthouse in 1871. A storm broke its lamp in 1902."
HARBOUR = "The harbour was dug in 1864, by hand."
BUILDER, YEAR, COST = "Who built it?", "In which year?", "What did it cost?"
REPLIES: dict[str, list[tuple[str | None, float]]] = {
    BUILDER: [("Edith Marlow", 0.93)],
    YEAR: [("1871", 0.81), ("1902", 0.42), ("1864", 0.004)],
    COST: [(None, 0.77), ("1902", 0.23)],
}
REFUSALS = {
    "Too long?": (422, {"error": "70000 tokens; at most 65536", "error_type": "Validation"}),
    "Busy?": (429, {"error": "40000 tokens wait already", "error_type": "Overloaded"}),
}
# The least that the page needs.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
INFO = {"model": "tiny-student", "engine": "torch", "parameters": 22_713_218}

browser = chromium.browser


def found(contexts: list[dict[str, str]], text: str | None, score: float) -> dict[str, Any]:
    """An answer as the server gives it: ``text`` where a context first holds it."""
    if text is None:
        return {"answer": None, "score": score, "start": 0, "end": 0, "na_prob": score, "document_id": None}
    context = next(each for each in contexts if text in each["text"])
    start = context["text"].index(text)
    place = {"start": start, "end": start + len(text), "document_id": context["id"]}
    return {"answer": text, "score": score, "na_prob": 1 - score, **place}


@dataclass
class Site:
    """A server of the page with ready answers; unknown questions are answered with the first word."""

    url: str = ""
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    """Answers wait for it."""

    forms: list[bytes] = field(default_factory=list)
    in_files: dict[str, Any] = field(default_factory=dict)
    """The reply to a form."""
    ready: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Answers to some questions, as they are sent."""

    def reply(self, path: str, authorization: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        self.paths.append(path)
        if body.startswith(b"--"):
            self.forms.append(body)
            return 200, self.in_files
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"error": "no or a wrong API key", "error_type": "Unauthorized"}
        if path.endswith("/info"):
            return 200, INFO
        if not path.endswith("/v1/answer"):
            return 404, {"error": f"no {path} here", "error_type": "NotFound"}
        request = json.loads(body)
        self.asked.append(request)
        self.free.wait(10)
        question, contexts = request["question"], request["contexts"]
        if question in REFUSALS:
            return REFUSALS[question]
        spans = REPLIES.get(question, [(contexts[0]["text"].split()[0], 0.5)])
        texts = " ".join(each["text"] for each in contexts)
        answers = self.ready.get(question) or [
            found(contexts, text, score) for text, score in spans if text is None or text in texts
        ]
        usage = {"contexts": len(contexts), "windows": 1, "tokens": 40, "seconds": 0.0042}
        return 200, {"answers": answers, "results": None, "model": "tiny-student", "usage": usage}


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.free.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/"):
                self.send(200, "text/html; charset=utf-8", PAGE.read_bytes())
            else:
                self.answer(b"")

        def do_POST(self) -> None:
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def answer(self, body: bytes) -> None:
            status, reply = made.reply(self.path, self.headers["Authorization"], body)
            self.send(status, "application/json", json.dumps(reply).encode())

        def send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            if status == 429:
                self.send_header("Retry-After", "2")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.free.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def page(browser: Chrome, site: Site) -> Page:
    chromium.resize(browser, 1200, 900)
    chromium.prefer(browser, "light")
    browser.get(site.url)
    opened = Page(browser)
    opened.until(lambda: opened.text("#info") != "")
    chromium.console_errors(browser)
    return opened


def test_page_is_one_file_without_handlers_in_markup_or_html_from_data() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"https?://[^'\"\s]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<[^>]*\son\w+=", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_answer_is_marked_in_its_passage_with_its_score_and_latency(page: Page) -> None:
    page.ask(BUILDER, LIGHTHOUSE)
    assert page.text("#answer") == "Edith Marlow"
    assert page.around_mark() == ("", "Edith Marlow", LIGHTHOUSE[12:])
    assert "93%" in page.text("#score")
    track, part = page.one("#score .bar"), page.one("#score .bar span")
    assert part.size["width"] == pytest.approx(0.93 * track.size["width"], abs=1)
    assert re.match(r"Answered in \d+ ms \(4 ms at the server\)", page.text("#latency"))
    assert not page.one("#others-box").is_displayed()


def test_answer_after_an_emoji_is_marked_exactly(page: Page) -> None:
    text = "🌊🏴‍☠️ Storm 🌪: " + LIGHTHOUSE
    page.ask(BUILDER, text)
    assert page.around_mark() == ("🌊🏴‍☠️ Storm 🌪: ", "Edith Marlow", LIGHTHOUSE[12:])


def test_answer_is_marked_in_the_passage_that_holds_it(page: Page) -> None:
    page.ask(BUILDER, HARBOUR, LIGHTHOUSE)
    assert page.text("#where") == "In passage 2"
    assert page.around_mark() == ("", "Edith Marlow", LIGHTHOUSE[12:])


def test_second_best_answers_are_listed_and_move_the_mark(page: Page) -> None:
    page.ask(YEAR, LIGHTHOUSE, HARBOUR)
    second, third = page.all("#others button")
    assert [second.text.split(), third.text.split()] == [["1902", "42%"], ["1864", "<1%"]]
    assert page.around_mark()[1] == "1871"
    second.click()
    assert page.around_mark() == (LIGHTHOUSE[:-5], "1902", ".")
    page.run("arguments[0].focus()", third)
    assert (page.text("#where"), page.around_mark()[1]) == ("In passage 2", "1864")
    page.one("#answer button").click()
    assert (page.text("#where"), page.around_mark()[1]) == ("In passage 1", "1871")


def test_no_answer_is_said_plainly_and_candidates_can_be_looked_at(page: Page) -> None:
    page.ask(COST, LIGHTHOUSE)
    assert page.text("#answer") == "No answer"
    assert page.text("#score").split("\n") == ["77%", "chance that the passage holds no answer"]
    assert not page.one("#passage").is_displayed()
    page.one("#others button").click()
    assert page.around_mark()[1] == "1902"


def test_refusal_is_shown_and_takes_the_old_answer_away(page: Page) -> None:
    page.ask(BUILDER, LIGHTHOUSE)
    page.ask("Too long?", LIGHTHOUSE)
    assert page.one("#error").get_attribute("aria-live")
    assert page.text("#error") == "70000 tokens; at most 65536 (Validation, 422)."
    assert page.text("#answer") == ""
    assert not page.one("#passage").is_displayed()
    page.ask(BUILDER, LIGHTHOUSE)
    assert (page.text("#error"), page.text("#answer")) == ("", "Edith Marlow")


def test_busy_server_says_when_to_try_again(page: Page) -> None:
    page.ask("Busy?", LIGHTHOUSE)
    assert page.text("#error") == "40000 tokens wait already (Overloaded, 429). Try again in 2 s."


def test_server_that_is_away_is_said_to_be(page: Page) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.enable", {})
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.ask(BUILDER, LIGHTHOUSE)
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    assert "cannot be reached" in page.text("#error")


@pytest.mark.parametrize("passage", ["", "  \n"])
def test_missing_question_or_passage_is_not_sent_but_asked_for(page: Page, site: Site, passage: str) -> None:
    page.fill(" ", LIGHTHOUSE)
    page.one("#ask").click()
    assert (page.text("#error"), page.focus()) == ("Write a question first.", "question")
    page.fill(BUILDER, passage)
    page.one("#ask").click()
    assert (page.text("#error"), page.focus()) == ("Write or paste a passage first.", "passage-1")
    assert site.asked == []


def test_key_is_asked_for_sent_and_kept_for_this_tab_only(browser: Chrome, site: Site) -> None:
    site.key = "sesame-7"
    browser.get(site.url)
    page = Page(browser)
    page.until(lambda: page.text("#info") == "This server needs a key.")
    page.ask(BUILDER, LIGHTHOUSE)
    assert page.text("#error") == "This server needs a key."
    page.one("#api-key").send_keys("sesame-7", Keys.ENTER)
    page.settled()
    assert page.text("#answer") == "Edith Marlow"
    browser.refresh()
    page.until(lambda: page.text("#info") == "tiny-student, 22.7M parameters, on torch")
    assert page.value("#api-key") == "sesame-7"
    assert page.run("return [localStorage.length, document.cookie]") == [0, ""]


def test_examples_fill_in_and_ask(page: Page, site: Site) -> None:
    examples = page.all("#examples button")
    assert len(examples) == 3
    for count, example in enumerate(examples, 1):
        example.click()
        page.settled()
        assert len(site.asked) == count
        assert page.value("#question") == site.asked[-1]["question"] == example.text.split("\n")[1]
        texts = [str(area.get_property("value")) for area in page.all("#passages textarea")]
        assert texts == [context["text"] for context in site.asked[-1]["contexts"]]
        assert page.text("#answer") == texts[0].split()[0]


def test_added_passages_are_sent_without_empty_and_removed_ones(page: Page, site: Site) -> None:
    page.fill(YEAR, LIGHTHOUSE, "to be removed", "", HARBOUR)
    page.all("#passages button")[1].click()
    assert page.focus() == "passage-1"
    page.one("#ask").click()
    page.settled()
    sent = [{"id": "1", "text": LIGHTHOUSE}, {"id": "3", "text": HARBOUR}]
    assert site.asked == [{"question": YEAR, "contexts": sent, "top_k": 3, "evidence": True}]
    page.all("#others button")[1].click()
    assert page.text("#where") == "In passage 3"


def test_places_of_an_answer_are_listed_and_move_the_mark(page: Page, site: Site) -> None:
    other = (
        "🌊 Storms came often. The lighthouse of Edith Marlow, built in 1871, withstood them. So it is said."
    )
    contexts = [{"id": "1", "text": LIGHTHOUSE}, {"id": "2", "text": other}]
    sentences = (LIGHTHOUSE[:41], "The lighthouse of Edith Marlow, built in 1871, withstood them.")
    places = [
        {
            **{key: each[key] for key in ("answer", "score", "start", "end", "document_id")},
            "sentence": sentence,
            "sentence_start": context["text"].index(sentence),
        }
        for context, sentence in zip(contexts, sentences, strict=True)
        for each in (found([context], "1871", 0.6),)
    ]
    site.ready[YEAR] = [
        {**found(contexts, "1871", 0.8), "places": places},
        {**found(contexts, "1902", 0.1), "places": places[:1]},
    ]
    page.ask(YEAR, LIGHTHOUSE, other)
    first, second = page.all("#places button")
    assert page.text("#places-title") == "2 places say it"
    assert first.text.split("\n") == [sentences[0], "Passage 1, 60% by itself"]
    assert second.text.split("\n") == [sentences[1], "Passage 2, 60% by itself"]
    assert [each.text for each in page.all("#places b")] == ["1871", "1871"]
    second.click()
    assert page.text("#where") == "In passage 2"
    before, marked, after = page.around_mark()
    assert (before[-9:], marked, after[:10]) == ("built in ", "1871", ", withstoo")
    page.one("#others button").click()
    assert not page.one("#places-box").is_displayed()


def in_file(answer: str, paragraph: str, before: int, page: int | None) -> dict[str, Any]:
    start = before + paragraph.index(answer)
    return {
        **{"answer": answer, "score": 0.9, "na_prob": 0.1, "start": start, "end": start + len(answer)},
        **{"document_id": "mill.pdf", "page": page, "boxes": None},
        **{"paragraph": paragraph, "paragraph_start": before},
    }


def dropped(page: Page, *names: str) -> None:
    """Drop files on the page, as from the reader's desktop."""
    page.run(
        "const data = new DataTransfer();"
        "for (const name of arguments[0]) data.items.add(new File(['%PDF'], name));"
        "const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});"
        "document.body.dispatchEvent(event)",
        list(names),
    )


def test_dropped_file_is_sent_and_its_answer_is_marked_with_the_page(page: Page, site: Site) -> None:
    usage = {"contexts": 2, "windows": 1, "tokens": 40, "seconds": 0.0042}
    start = LIGHTHOUSE.index("1871")
    place = {"start": start, "end": start + 4, "document_id": "0"}
    of_text = {"answer": "1871", "score": 0.4, "na_prob": 0.6, **place}
    of_file = in_file("Ines Adair", "🌊 The miller, Ines Adair, opens it.", 1000, 3)
    site.in_files = {
        "answers": [{**of_file, "picture": f"data:image/png;base64,{PIXEL}"}, of_text],
        "unreadable": [{"document_id": "b.pdf", "error": "the file is encrypted"}],
        "usage": usage,
    }
    page.fill(BUILDER, LIGHTHOUSE)
    dropped(page, "mill.pdf", "b.pdf", "c.pdf")
    assert [each.text.split()[0] for each in page.all("#files li")] == ["mill.pdf", "b.pdf", "c.pdf"]
    page.all("#files button")[2].click()
    page.one("#ask").click()
    page.settled()
    (form,) = site.forms
    assert form.count(b'name="files"; filename=') == 2
    assert b'filename="mill.pdf"' in form
    assert LIGHTHOUSE.encode() in form
    assert page.text("#answer") == "Ines Adair"
    assert page.around_mark() == ("🌊 The miller, ", "Ines Adair", ", opens it.")
    assert page.text("#where") == "In mill.pdf, page 3"
    assert page.one("#picture").get_property("naturalWidth") == 1
    assert page.one("#picture").get_attribute("alt") == "Page 3 of mill.pdf, the answer marked"
    assert page.text("#error") == "b.pdf was not read: the file is encrypted."
    page.one("#others button").click()
    assert (page.text("#where"), page.around_mark()[1]) == ("In passage 1", "1871")
    assert not page.one("#picture").is_displayed()


def test_file_alone_suffices(page: Page, site: Site) -> None:
    answer = in_file("Ines Adair", "The miller, Ines Adair.", 0, None)
    site.in_files = {"answers": [answer], "usage": {"seconds": 0.0042}}
    page.fill(BUILDER, "")
    dropped(page, "mill.docx")
    page.one("#ask").click()
    page.settled()
    assert (page.text("#where"), page.around_mark()[1]) == ("In mill.pdf", "Ines Adair")


def test_last_passage_cannot_be_removed(page: Page) -> None:
    assert not page.one("#passages button").is_displayed()
    page.one("#add-passage").click()
    page.all("#passages button")[0].click()
    assert len(page.all("#passages textarea")) == 1
    assert not page.one("#passages button").is_displayed()


def test_keyboard_alone_suffices(page: Page) -> None:
    def tab_to(name: str) -> WebElement:
        for _ in range(20):
            ActionChains(page.browser).send_keys(Keys.TAB).perform()
            if page.focus() == name:
                return page.browser.switch_to.active_element
        raise AssertionError(f"{name} is not reached with Tab")

    tab_to("question").send_keys(YEAR)
    passage = tab_to("passage-1")
    assert passage.value_of_css_property("outline-style") == "solid"
    passage.send_keys(LIGHTHOUSE)
    passage.send_keys(Keys.CONTROL, Keys.ENTER)
    page.settled()
    assert (page.text("#answer"), page.focus()) == ("1871", "passage-1")
    for _ in range(20):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        if page.around_mark()[1] == "1902":
            break
    assert page.around_mark()[1] == "1902"


def test_every_field_and_button_has_a_name(page: Page) -> None:
    page.ask(YEAR, LIGHTHOUSE, HARBOUR)
    shown = [each.accessible_name for each in page.all("input, textarea, button") if each.is_displayed()]
    assert len(shown) > 10
    assert all(shown)
    assert {"Question", "Passage 1", "Passage 2", "Remove passage 2"} <= set(shown)


def test_page_is_busy_until_the_answer_comes_and_the_newest_question_wins(page: Page, site: Site) -> None:
    site.free.clear()
    page.fill(BUILDER, LIGHTHOUSE)
    page.one("#ask").click()
    page.until(lambda: len(site.asked) == 1)
    assert (page.text("#ask"), page.one("main").get_attribute("aria-busy")) == ("Asking…", "true")
    page.fill(YEAR, LIGHTHOUSE)
    page.one("#ask").click()
    page.until(lambda: len(site.asked) == 2)
    site.free.set()
    page.settled()
    assert (page.text("#ask"), page.text("#answer"), page.text("#error")) == ("Ask", "1871", "")


def test_markup_in_a_passage_is_shown_as_text(page: Page) -> None:
    text = "<img src=x onerror=alert(1)>Edith Marlow</p><script>alert(2)</script>"
    page.ask(BUILDER, text)
    assert "".join(page.around_mark()) == text
    assert page.all("#passage img, #passage script") == []


@pytest.mark.parametrize("question", [YEAR, COST, "Too long?"])
def test_nothing_scrolls_sideways_on_a_phone(page: Page, question: str) -> None:
    chromium.resize(page.browser, 360, 740)
    page.ask(question, LIGHTHOUSE + " " + "w" * 200, HARBOUR)
    assert page.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    assert max(element.rect["x"] + element.rect["width"] for element in page.all("body *")) <= 360


@pytest.mark.parametrize(("question", "wanted"), [(YEAR, "#answer"), ("Too long?", "#error")])
def test_what_came_of_a_question_is_scrolled_into_view(page: Page, question: str, wanted: str) -> None:
    chromium.resize(page.browser, 360, 640)
    page.fill(question, *[LIGHTHOUSE] * 8)
    page.run("scrollTo(0, 0); arguments[0].click()", page.one("#ask"))
    page.settled()
    top, bottom = page.run(
        "const r = arguments[0].getBoundingClientRect(); return [r.top, r.bottom]", page.one(wanted)
    )
    assert 0 <= top < bottom <= 640


def luminance(colour: str) -> float:
    """Relative luminance of a CSS ``rgb(…)`` (WCAG 2.2)."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


COLOURS = """
const clear = 'rgba(0, 0, 0, 0)';
const colour = (element, name) => getComputedStyle(element)[name];
const written = element => element.matches('input, textarea')
  || Array.from(element.childNodes).some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
const shown = Array.from(document.querySelectorAll('body *')).filter(each => each.checkVisibility());
return shown.filter(written).map(element => {
  let behind = element;
  while (behind.parentElement && colour(behind, 'backgroundColor') === clear) behind = behind.parentElement;
  return [element.outerHTML.slice(0, 80), colour(element, 'color'), colour(behind, 'backgroundColor')];
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("question", [YEAR, "Too long?"])
def test_all_text_has_enough_contrast(page: Page, scheme: Literal["light", "dark"], question: str) -> None:
    chromium.prefer(page.browser, scheme)
    page.ask(question, LIGHTHOUSE, HARBOUR)
    body = page.one("body")
    assert (luminance(body.value_of_css_property("background-color")) < 0.2) == (scheme == "dark")
    colours = page.run(COLOURS)
    assert len(colours) > 15
    assert [row for row in colours if contrast(row[1], row[2]) < 4.5] == []


def test_page_writes_no_errors_and_asks_only_its_own_server(page: Page, site: Site) -> None:
    page.browser.get(site.url)
    page.ask(YEAR, LIGHTHOUSE, HARBOUR)
    page.one("#others button").click()
    page.ask(COST, LIGHTHOUSE, HARBOUR)
    assert chromium.console_errors(page.browser) == []
    requested = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert requested == [site.url + path for path in ("info", "v1/answer", "v1/answer")]


def test_page_below_a_prefix_asks_below_it(page: Page, site: Site) -> None:
    page.browser.get(site.url + "qa/")
    page.ask(BUILDER, LIGHTHOUSE)
    assert page.text("#answer") == "Edith Marlow"
    assert site.paths[-2:] == ["/qa/info", "/qa/v1/answer"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("desk", 1200, 900), ("phone", 360, 1500)])
def test_screenshot(
    page: Page, scheme: Literal["light", "dark"], name: str, width: int, height: int, tmp_path: Path
) -> None:
    chromium.prefer(page.browser, scheme)
    chromium.resize(page.browser, width, height)
    page.ask(YEAR, LIGHTHOUSE, HARBOUR)
    path = chromium.screenshot(page.browser, tmp_path / f"page-{name}-{scheme}.png")
    assert path.stat().st_size > 10_000
