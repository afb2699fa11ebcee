"""The page in a real browser, used as a person would: each tab, the keyboard, a narrow screen, no run at all."""

import io
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from justimage.web import Page, build
from tests.test_play_door import free_port

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [pytest.mark.full, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[tuple[Page, str]]:
    page = build([run])
    yield page, page.launch(port=free_port(), wait=False)
    page.close()


@pytest.fixture
def page(browser: Any, served: tuple[Page, str]) -> Iterator[Any]:
    """The page as a browser shows it; whatever it asked of other machines, or failed in its scripts, fails the test."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    elsewhere, errors = [], []
    opened.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url) else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(served[1])
    playwright.expect(opened.locator("#facts")).to_contain_text("32 x 32, grey; 10 classes", timeout=15_000)
    yield opened
    opened.close()
    assert not elsewhere and not errors


def is_elsewhere(url: str) -> bool:
    return not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|data:|blob:|about:", url)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def choose(page: Any, name: str) -> None:
    """Type a class, and go on to the next field."""
    page.locator("#classes input").fill(name)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")


def done(page: Any, place: str, words: str) -> None:
    playwright.expect(page.locator(place)).to_contain_text(words, timeout=30_000)


def test_draw_and_download(page: Any, tmp_path: Path) -> None:
    choose(page, "7")
    page.locator("#count input").fill("2")
    page.locator("#draw").click()
    done(page, "#line", "done: ")
    assert page.locator("#z img").count() == page.locator("#x img").count() == 1
    with page.expect_download() as began:
        page.locator("#grid").click()
    began.value.save_as(tmp_path / "grid.png")
    text = Image.open(tmp_path / "grid.png").text
    assert "--classes 7 --count 2 --seed 0" in text["Command"]
    with page.expect_download() as began:
        page.locator("#each").click()
    with zipfile.ZipFile(io.BytesIO(Path(began.value.path()).read_bytes())) as archive:
        assert archive.namelist() == ["000000.png", "000001.png"]
    page.get_by_role("button", name="The same by a command").click()
    assert page.locator("#command textarea").input_value() == text["Command"]
    page.locator("#again").click()
    done(page, "#x", "seed 2")
    assert page.locator("#history img").count() == 2


def test_a_mistake_is_said_in_one_line(page: Any) -> None:
    choose(page, "eleven")
    page.locator("#draw").click()
    done(page, ".toast-body", "class 'eleven' is not one of this model's")
    done(page, "#line", "class 'eleven' is not one of this model's")


def test_a_seed_is_not_rounded(page: Any) -> None:
    page.locator("#draw").click()
    done(page, "#line", "done: ")
    page.locator("#seed input").fill("2.5")
    page.locator("#draw").click()
    done(page, "#line", "seed is 2.5; allowed: whole numbers from 0 to")
    page.locator("#again").click()
    done(page, "#line", "seed is 2.5; allowed: whole numbers from 0 to")


def test_the_keyboard_is_enough(page: Any) -> None:
    page.locator("#count input").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#seed') !== null")
    page.keyboard.press("Control+A")
    page.keyboard.type("11")
    page.keyboard.press("Enter")
    done(page, "#x", "seed 11")
    page.get_by_role("tab", name="Draw").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#compare")).to_be_visible()


def begin_long_drawing(page: Any) -> None:
    """Draw with 500 steps of Heun, and wait for the first of them."""
    page.get_by_role("button", name="Solver, interval, average").click()
    page.locator("#solver input").click()
    page.get_by_role("option", name="heun").click()
    page.locator("#steps input").fill("500")
    page.locator("#draw").click()
    done(page, "#line", "step ")


def test_a_long_drawing_stops(page: Any, served: tuple[Page, str]) -> None:
    begin_long_drawing(page)
    page.locator("#stop").click()
    done(page, "#line", "stopped")
    wait_until(lambda: not served[0].models.turns.drawings)
    assert not served[0].models.turns.taken


def test_a_drawing_ends_with_its_page(browser: Any, served: tuple[Page, str]) -> None:
    page = browser.new_page()
    page.goto(served[1])
    done(page, "#facts", "10 classes")
    begin_long_drawing(page)
    assert served[0].models.turns.drawings
    page.close()
    wait_until(lambda: not served[0].models.turns.drawings)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_compare(page: Any) -> None:
    tab(page, "Compare")
    playwright.expect(page.locator("#left-ema input")).to_have_value("300")
    page.locator("#compare").click()
    done(page, "#compare-line", "done: ")
    done(page, "#compare-line", "equal to the byte")
    assert page.locator("#left-x img").count() == page.locator("#right-x img").count() == 1


def test_explore(page: Any) -> None:
    tab(page, "Explore")
    page.locator("#way").click()
    done(page, "#strip", "from one to the other")
    page.locator("#near").click()
    done(page, "#found", "apart by")
    assert page.locator("#found img").count() == 9


def test_edit(page: Any, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.png"
    Image.radial_gradient("L").convert("RGB").save(photograph)
    tab(page, "Edit")
    playwright.expect(page.locator("#editor canvas").first).to_be_visible(timeout=15_000)
    page.wait_for_timeout(1000)  # until the editor is there altogether
    page.locator("#editor input[type=file]").first.set_input_files(photograph)
    page.wait_for_timeout(2500)  # until the editor has it
    page.locator("#edit").click()
    done(page, ".toast-body", "nothing is painted over yet")
    canvas = page.locator("#editor canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.locator("#editor").get_by_role("button", name="Brush", exact=True).click()
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 10, steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#edit-steps input").fill("4")
    page.locator("#edit").click()
    done(page, "#edit-line", "done")
    with page.expect_download() as began:
        page.locator("#edit-sources").click()
    with zipfile.ZipFile(io.BytesIO(Path(began.value.path()).read_bytes())) as archive:
        mask = Image.open(archive.open("mask.png"))
    assert mask.getextrema() == (0, 255)
    page.locator("#task").get_by_text("vary").click()
    page.locator("#edit").click()
    done(page, "#edit-line", "done")


def test_watch(page: Any) -> None:
    tab(page, "Watch")
    done(page, "#watch-line", "finished: 640 of 640 images")
    assert page.locator("#loss img").count() == page.locator("#preview img").count() == 1
    done(page, "#metrics", "images/s")


def test_a_narrow_screen(browser: Any, served: tuple[Page, str]) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(served[1])
    done(page, "#facts", "10 classes")
    for name in "Draw", "Compare", "Explore", "Edit":
        if not page.get_by_role("tab", name=name).first.is_visible():
            page.locator(".overflow-menu button").first.click()
        page.get_by_role("tab", name=name).or_(page.locator(".overflow-dropdown").get_by_text(name)).first.click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
    page.close()


def test_no_run_at_all(browser: Any, tmp_path: Path) -> None:
    built = build(home=tmp_path)
    address = built.launch(port=free_port(), wait=False)
    page = browser.new_page()
    try:
        page.goto(address)
        done(page, "#nothing", "There is no model here yet: train the demo")
        playwright.expect(page.locator("#preview-at")).to_be_hidden()
        page.locator("#train").click()
        done(page, "#watch-line", "the demo begins")
        page.wait_for_function("/begun|training/.test(document.querySelector('#watch-line').innerText)", timeout=60_000)
    finally:
        page.close()
        built.close()
    assert not built.demo.running
