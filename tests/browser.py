"""A headless Chromium, the page in it, and what tests ask of them."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; the test is skipped where there is none."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"{name} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"] or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        # A smooth scroll would still move what the test clicks.
        "--force-prefers-reduced-motion",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    yield driver
    driver.quit()


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Give the page a screen of so many CSS pixels; a window cannot be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(browser: webdriver.Chrome, scheme: Literal["light", "dark"]) -> None:
    """Tell the page which colours its reader prefers."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def console_errors(browser: webdriver.Chrome) -> list[str]:
    """Errors on the console since the last call."""
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [str(entry["message"]) for entry in log if entry["level"] == "SEVERE"]


def screenshot(browser: webdriver.Chrome, path: Path) -> Path:
    """Write the whole page as a PNG, and into the folder $TINYQA_SCREENSHOTS too when that is set."""
    whole = {"captureBeyondViewport": True}
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", whole)["data"]))
    if folder := os.environ.get("TINYQA_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return path


@dataclass(frozen=True)
class Page:
    """A server's page, open in the browser."""

    browser: webdriver.Chrome
    patience_s: float = 10
    """How long to wait for what is expected."""

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def value(self, selector: str) -> str:
        return str(self.one(selector).get_property("value"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def focus(self) -> str:
        """The id of what has the focus."""
        return str(self.run("return document.activeElement.id"))

    def until(self, true: Callable[[], bool]) -> None:
        WebDriverWait(self.browser, self.patience_s, poll_frequency=0.02).until(lambda _: true())

    def fill(self, question: str, *passages: str) -> None:
        """Write a question and its passages, into as many fields."""
        while len(self.all("#passages textarea")) < len(passages):
            self.one("#add-passage").click()
        areas = self.all("#passages textarea")
        # The driver cannot type what lies outside the Basic Multilingual Plane.
        for element, text in zip([self.one("#question"), *areas], [question, *passages], strict=True):
            self.run("arguments[0].value = arguments[1]", element, text)

    def settled(self) -> None:
        """Wait for the answer."""
        self.until(lambda: self.one("main").get_attribute("aria-busy") == "false")

    def ask(self, question: str, *passages: str) -> None:
        self.fill(question, *passages)
        self.one("#ask").click()
        self.settled()

    def around_mark(self) -> tuple[str, str, str]:
        """The shown passage: before, in and after its mark."""
        script = "return Array.from(document.querySelector('#passage').childNodes, each => each.textContent)"
        before, marked, after = self.run(script)
        assert self.one("#passage").find_element(By.TAG_NAME, "mark").text == marked
        return before, marked, after
