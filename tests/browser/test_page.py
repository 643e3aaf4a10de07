"""The application's page in Chromium, against a running fleet: draw a digit, read the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

Point = tuple[float, float]  # in shares of the drawing area's side
Open = Callable[..., Page]
TIMEOUT_MS = 15_000
expect.set_options(timeout=TIMEOUT_MS)


def arc(x: float, y: float, width: float, height: float, start: int, end: int) -> list[Point]:
    """A part of an ellipse in 24 steps; degrees run clockwise from the right."""
    angles = [math.radians(start + (end - start) * step / 24) for step in range(25)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


DIGITS: dict[int, list[list[Point]]] = {
    0: [arc(0.5, 0.5, 0.22, 0.36, -90, 270)],
    2: [[*arc(0.48, 0.34, 0.21, 0.2, -160, 50), (0.28, 0.86), (0.72, 0.86)]],
    3: [[*arc(0.47, 0.32, 0.2, 0.18, -150, 80), *arc(0.47, 0.68, 0.24, 0.2, -80, 150)]],
    6: [[(0.62, 0.14), (0.43, 0.35), *arc(0.49, 0.65, 0.2, 0.21, 190, -170)]],
}


@pytest.fixture
def open_page(browser: Browser, access: dict[str, Any]) -> Iterator[Open]:
    """Opens the page in a context with the given options. Errors on its console fail the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_one(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.goto(access["application_url"])
        expect(page.locator("body")).to_have_attribute("data-state", "empty")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


def on_pad(page: Page, points: list[Point]) -> list[Point]:
    """Points of the drawing area as points of the window."""
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    assert box is not None
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]


def draw_with_mouse(page: Page, strokes: list[list[Point]]) -> None:
    for stroke in strokes:
        first, *others = on_pad(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point, steps=3)
        page.mouse.up()


def draw_with_finger(page: Page, strokes: list[list[Point]]) -> None:
    # Playwright's touchscreen only taps; the protocol below it also moves.
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: Point) -> None:
        session.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )

    for stroke in strokes:
        first, *others = on_pad(page, stroke)
        touch("touchStart", first)
        for point in others:
            touch("touchMove", point)
        touch("touchEnd")


def expect_answer(page: Page, digit: int) -> None:
    """The page shows the digit, ten bars that add up to one, the version and both times."""
    expect(page.locator("#digit")).to_have_text(str(digit))
    expect(page.locator("body")).to_have_attribute("data-state", "answered")
    bars = page.locator("#bars li")
    expect(bars).to_have_count(10)
    shares = [float(bar.get_attribute("data-probability") or "nan") for bar in bars.all()]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert max(range(10), key=shares.__getitem__) == digit
    expect(page.locator("#bars .chosen .name")).to_have_text(str(digit))
    expect(page.locator("#version")).not_to_be_empty()
    expect(page.locator("body")).to_have_attribute("data-source", "prediction")
    parts = page.locator("#timing dt").all_inner_texts()
    assert parts[1:] == ["Application", "Gateway", "Prediction service", "Queue", "Model"]
    expect(page.locator("#round-trip")).to_contain_text("ms")
    expect(page.locator("#model-time")).to_contain_text("ms")


@pytest.mark.parametrize("digit", DIGITS)
def test_mouse(open_page: Open, digit: int) -> None:
    page = open_page()
    draw_with_mouse(page, DIGITS[digit])
    expect_answer(page, digit)


def test_clear_and_draw_again(open_page: Open) -> None:
    page = open_page()
    draw_with_mouse(page, DIGITS[3])
    expect_answer(page, 3)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#digit")).to_be_empty()
    expect(page.locator("body")).to_have_attribute("data-state", "empty")
    draw_with_mouse(page, DIGITS[0])
    expect_answer(page, 0)


def test_touch_on_a_phone(open_page: Open) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    draw_with_finger(page, DIGITS[2])
    expect_answer(page, 2)
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width == 360, "the page scrolls sideways on a phone"


def test_keyboard(open_page: Open) -> None:
    page = open_page()
    for _ in range(2):  # past the Clear button
        page.keyboard.press("Tab")
    expect(page.get_by_label("row 1 column 1, ink 0 of 16")).to_be_focused()
    for key, times in (("ArrowRight", 2), ("Shift+ArrowRight", 3), ("Shift+ArrowDown", 7)):
        for _ in range(times):
            page.keyboard.press(key)
    for key, times in (("Shift+ArrowLeft", 3), ("Shift+ArrowUp", 7)):
        for _ in range(times):
            page.keyboard.press(key)
    expect_answer(page, 0)
    page.keyboard.press("Space")
    expect(page.get_by_label("row 1 column 3, ink 8 of 16")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#digit")).to_be_empty()


def test_gallery_shows_the_last_batch_run(open_page: Open) -> None:
    page = open_page()
    batch = page.locator("#batch")
    items = batch.locator(".gallery li")
    expect(items.first).to_be_visible()
    assert items.count() >= 10
    expect(items.first).to_contain_text("%")
    for figure in ("run", "rows", "rejected", "version", "age"):
        expect(batch.locator(f'[data-figure="{figure}"]')).not_to_be_empty()


def test_the_gallery_of_one_digit(open_page: Open) -> None:
    page = open_page()
    batch = page.locator("#batch")
    expect(batch.locator(".gallery li").first).to_be_visible()
    batch.get_by_label("Predicted", exact=True).select_option("3")
    expect(batch.locator('.gallery li[data-digit="3"]').first).to_be_visible()
    expect(batch.locator('.gallery li:not([data-digit="3"])')).to_have_count(0)


def test_a_file(open_page: Open) -> None:
    page = open_page()
    with page.expect_download() as download:
        page.get_by_role("link", name="An example").click()
    section = page.locator("#file")
    section.get_by_label("File", exact=True).set_input_files(download.value.path())
    section.get_by_role("button", name="Predict").click()
    expect(section.locator('[data-file="status"]')).to_have_text("10 rows predicted.")
    with page.expect_download() as download:
        section.get_by_role("button", name="Save predictions.csv").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 11 and lines[1].startswith("digit-0,0,")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_picture(open_page: Open, screenshots: Path, scheme: str) -> None:
    page = open_page(
        viewport={"width": 1180, "height": 1530}, device_scale_factor=2, color_scheme=scheme
    )
    draw_with_mouse(page, DIGITS[3])
    expect_answer(page, 3)
    expect(page.locator(".gallery li").first).to_be_visible()
    name = "page.png" if scheme == "light" else f"page-{scheme}.png"
    page.screenshot(path=screenshots / name)
