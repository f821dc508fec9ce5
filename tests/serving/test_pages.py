"""The pages: self-contained files, and in a real browser typing, accepting, typing through, the dashboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from live_server import Running

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/dashboard", "text/html"),
        ("/static/write.js", "text/javascript"),
        ("/static/dashboard.js", "text/javascript"),
        ("/static/style.css", "text/css"),
    ],
)
def test_pages_load_nothing_from_elsewhere(bundled: Running, path: str, kind: str) -> None:
    reply = bundled.fetch("GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(kind)
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    text = reply.body.decode()
    assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
    for name in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        assert bundled.fetch("GET", name).status == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1100,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def text_of(browser: WebDriver, element: str) -> str:
    found: str = browser.execute_script(
        "const e = document.getElementById(arguments[0]); return 'value' in e ? e.value : e.textContent",
        element,
    )
    return found


def severe(browser: Any) -> list[Any]:
    """Errors in the browser's console since the last call."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def wait_for_ghost(browser: WebDriver, run: Running) -> str:
    run.wait_until(lambda: text_of(browser, "ghost") != "")
    return text_of(browser, "ghost")


def passes(run: Running) -> float:
    found = re.search(
        rb"^specpilot_target_passes_total (\S+)$", run.fetch("GET", "/metrics").body, re.MULTILINE
    )
    assert found
    return float(found[1])


def test_writing_in_a_browser(browser: WebDriver, bundled: Running) -> None:
    """Type, see a suggestion, accept it with Tab, type through one without a new target pass, dismiss one."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(bundled.url)
    editor = browser.find_element(By.ID, "text")
    editor.send_keys("Thank you for your letter. I would like to")
    ghost = wait_for_ghost(browser, bundled)
    assert text_of(browser, "spoken") == f"Suggestion: {ghost.strip()}"

    editor.send_keys(Keys.TAB)
    assert text_of(browser, "text") == f"Thank you for your letter. I would like to{ghost}"
    assert browser.switch_to.active_element == editor

    # Type through all but the last letter of the next one: nobody is asked.
    ghost = wait_for_ghost(browser, bundled)
    before = passes(bundled)
    requests = bundled.server.controller.counters.arrivals
    first, rest = ghost[:-1], ghost[-1:]
    editor.send_keys(first.replace("\n", Keys.ENTER))
    assert text_of(browser, "ghost") == rest
    assert passes(bundled) == before
    assert bundled.server.controller.counters.arrivals == requests

    editor.send_keys(Keys.ESCAPE)
    assert text_of(browser, "ghost") == ""
    assert text_of(browser, "spoken") == "Dismissed."
    browser.find_element(By.CSS_SELECTOR, "#details summary").click()
    assert browser.find_elements(By.CSS_SELECTOR, "#rows tr")
    assert not severe(browser)


def test_other_text_replaces_a_suggestion(browser: WebDriver, bundled: Running) -> None:
    from selenium.webdriver.common.by import By

    browser.get(bundled.url)
    editor = browser.find_element(By.ID, "text")
    editor.send_keys("The committee recommends that")
    ghost = wait_for_ghost(browser, bundled)
    other = "x" if not ghost.startswith("x") else "y"
    editor.send_keys(other)
    assert text_of(browser, "ghost") == ""
    assert text_of(browser, "text") == f"The committee recommends that{other}"


def test_the_dashboard_moves(browser: WebDriver, bundled: Running) -> None:
    browser.get(f"{bundled.url}/dashboard")
    for number in range(4):
        bundled.post({"prompt": f"The meeting number {number}", "continuation": False})
    bundled.wait_until(lambda: text_of(browser, "tau") != "–" and text_of(browser, "p95") != "–")
    assert text_of(browser, "p95").endswith(" ms")
    assert 0.0 < float(text_of(browser, "passes")) <= 3.0
    label = browser.execute_script("return document.getElementById('acceptance').getAttribute('aria-label')")
    assert label.startswith("Share of drafted tokens accepted")
    assert "1: " in label
    assert not severe(browser)
