"""The application's page in Chromium with everything behind it controlled: every feature, and what a person sees when something is
slow, dead or missing. Needs no fleet."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import stand_ins
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect
from stand_ins import Gateway, Model, Store

TIMEOUT_MS = 10_000
RUN = "20260131T023000Z"
WIDE = {"width": 1180, "height": 900}
PHONE = {"width": 360, "height": 740}
SEVEN = [(1, 2), (1, 3), (1, 4), (1, 5), (2, 5), (3, 4), (4, 4), (5, 3), (6, 3)]


class Open(Protocol):
    def __call__(self, url: str = "", **options: Any) -> Page: ...


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def gateway(model: Model) -> Iterator[Gateway]:
    with stand_ins.gateway(model) as started:
        yield started


@pytest.fixture(scope="module")
def store(model: Model) -> Iterator[Store]:
    with stand_ins.store(model) as started:
        started.publish(RUN)
        yield started


@pytest.fixture(scope="module")
def url(gateway: Gateway, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application, its circuit quick to be tried again."""
    environment = {
        "PREDICTION_URL": gateway.url,
        "AWS_ENDPOINT_URL": store.endpoint,
        "PREDICTION_TIMEOUT_SECONDS": "8",
        "CIRCUIT_FAILURES": "2",
        "CIRCUIT_PROBE_SECONDS": "0.2",
        "FILE_BATCH_ROWS": "100",
    }
    with stand_ins.application(tmp_path_factory.mktemp("application"), environment) as started:
        yield started


@pytest.fixture(autouse=True)
def all_is_well(gateway: Gateway) -> Iterator[None]:
    yield
    gateway.mode, gateway.delay_seconds = "up", 0.0
    gateway.release.set()
    gateway.release.clear()


@pytest.fixture
def open_page(plain_browser: Browser, url: str) -> Iterator[Open]:
    """Opens the page. What a script of it throws, or the policy of the page forbids, fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_one(address: str = "", **options: Any) -> Page:
        context = plain_browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Policy" in said.text else None)
        page.goto(address or f"{url}/")
        expect(page.locator("body")).to_have_attribute("data-state", "empty")
        return page

    expect.set_options(timeout=TIMEOUT_MS)
    yield open_one
    for context in contexts:
        context.close()
    assert errors == []


def draw_seven(page: Page) -> None:
    """By clicks on the pixels, so that the model gets the very same image each time."""
    cells = page.locator("#pixels [role=gridcell]")
    for row, column in SEVEN:
        cells.nth(row * 8 + column).click()


def state(page: Page, value: str) -> None:
    expect(page.locator("body")).to_have_attribute("data-state", value)


def source(page: Page, value: str) -> None:
    expect(page.locator("body")).to_have_attribute("data-source", value)


def status(page: Page, name: str) -> Locator:
    return page.locator(f'[data-status="{name}"]')


def part_of(first: int, last: int, matching: int) -> str:
    return f"{first}\N{EN DASH}{last} of {matching}"


def fits(page: Page) -> None:
    # Not innerWidth: a phone's grows with the page.
    size = page.viewport_size
    assert size is not None
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= size["width"], f"the page is {wide} wide and scrolls sideways"


def expect_run(url: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        with urllib.request.urlopen(f"{url}/api/batch") as answer:
            if json.load(answer)["run"]:
                return
        assert time.monotonic() < deadline, f"{url}/api/batch has no run after 10 s"
        time.sleep(0.1)


# -- as it should be -------------------------------------------------------------------------------


def test_a_prediction_its_source_and_its_times(open_page: Open, screenshots: Path) -> None:
    page = open_page(viewport={"width": 1180, "height": 1500}, device_scale_factor=2)
    draw_seven(page)
    state(page, "answered")
    source(page, "prediction")
    expect(page.locator("#source")).to_have_text("By the prediction service")
    expect(page.locator("#version")).to_have_text("v3")
    timing = page.locator("#timing")
    expect(timing).to_be_visible()
    names = timing.locator("dt").all_inner_texts()
    assert names == [
        "Network to the page",
        "Application",
        "Gateway",
        "Prediction service",
        "Queue",
        "Model",
    ]
    numbers = timing.locator("dd").all_inner_texts()
    assert all(re.fullmatch(r"[\d.]+ ms · \d+%", number) for number in numbers), numbers
    assert 97 <= sum(int(number.rpartition(" ")[2][:-1]) for number in numbers) <= 103
    assert timing.locator(".split i").count() == len(names)
    expect(status(page, "prediction").locator("span")).to_contain_text(
        "digits v3 through the gateway, answered"
    )
    expect(status(page, "batch")).to_have_attribute("data-health", "good")
    page.screenshot(path=screenshots / "page-all.png", full_page=True)


def test_gallery_filters_and_pages(open_page: Open, url: str) -> None:
    page = open_page()
    batch = page.locator("#batch")
    items, shown = batch.locator(".gallery li"), batch.locator(".pager [role=status]")
    expect(items).to_have_count(48)
    expect(shown).to_have_text(part_of(1, 48, 360))
    before, after = (
        batch.get_by_role("button", name="Previous"),
        batch.get_by_role("button", name="Next"),
    )
    expect(before).to_have_attribute("aria-disabled", "true")
    after.click()
    expect(shown).to_have_text(part_of(49, 96, 360))
    expect(items.first).to_have_attribute("title", "holdout-0048")
    before.click()
    expect(shown).to_have_text(part_of(1, 48, 360))
    batch.get_by_label("Predicted", exact=True).select_option("3")
    with urllib.request.urlopen(f"{url}/api/batch?digit=3") as answer:
        matching = json.load(answer)["matching"]
    assert 10 < matching < 60
    expect(shown).to_have_text(part_of(1, min(48, matching), matching))
    assert {text.split()[0] for text in items.all_inner_texts()} == {"3"}
    batch.get_by_label("Confidence").select_option("0-0.8")
    expect(batch.locator(".gallery li:not(.unsure)")).to_have_count(0)
    batch.get_by_label("Predicted", exact=True).select_option("")
    batch.get_by_label("Confidence").select_option("0-1")
    expect(shown).to_have_text(part_of(1, 48, 360))


def test_an_image_of_the_gallery_is_predicted(open_page: Open) -> None:
    page = open_page()
    item = page.locator(".gallery li").nth(5)
    label = item.inner_text().split()[0]
    item.get_by_role("button").click()
    state(page, "answered")
    expect(page.locator("#digit")).to_have_text(label)
    expect(
        page.get_by_label("What the model sees").or_(page.locator("#pixels"))
    ).to_be_in_viewport()


def rows(count: int, model: Model) -> bytes:
    lines = [",".join(["id", *[f"p{pixel}" for pixel in range(64)]])]
    lines += [
        ",".join([f"mine-{row}", *[f"{value:g}" for value in model.images[row % 500]]])
        for row in range(count)
    ]
    return "\n".join(lines).encode()


def upload(page: Page, data: bytes, name: str = "rows.csv") -> Locator:
    section = page.locator("#file")
    section.get_by_label("File").set_input_files(
        {"name": name, "mimeType": "text/csv", "buffer": data}
    )
    section.get_by_role("button", name="Predict").click()
    return section


def test_a_file_with_progress_and_result(
    open_page: Open, gateway: Gateway, model: Model, tmp_path: Path, screenshots: Path
) -> None:
    page = open_page()
    gateway.delay_seconds = 0.5
    section = upload(page, rows(450, model))
    expect(section.locator('[data-file="status"]')).to_have_text(
        re.compile(r"[1-4]\d\d of 450 rows predicted")
    )
    expect(section.get_by_role("progressbar")).to_be_visible()
    section.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "page-file.png")
    expect(section.locator('[data-file="status"]')).to_have_text("450 rows predicted.")
    with page.expect_download() as download:
        section.get_by_role("button", name="Save predictions.csv").click()
    assert download.value.suggested_filename == "predictions.csv"
    download.value.save_as(tmp_path / "predictions.csv")
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,digit,probability,model_version" and len(lines) == 451
    expected = model.predict([model.images[9]]).argmax()
    assert lines[10].startswith(f"mine-9,{expected},0.")


def test_the_example_file_is_one(open_page: Open) -> None:
    page = open_page()
    with page.expect_download() as download:
        page.get_by_role("link", name="An example").click()
    section = upload(page, Path(download.value.path()).read_bytes())
    expect(section.locator('[data-file="status"]')).to_have_text("10 rows predicted.")


def test_files_that_are_refused(open_page: Open, model: Model) -> None:
    page = open_page()
    problem = page.locator('[data-file="problem"]')
    page.locator("#file").get_by_role("button", name="Predict").click()
    expect(problem).to_have_text("Choose a file first.")
    for data, said in (
        (b"", "Not predicted: the file is empty"),
        (b"a;b;c\n1;2;3\n", "separated by semicolons"),
        (
            rows(3, model).replace(b"mine-1,0", b"mine-1,x"),
            "line 3: p0 is 'x'; it must be a number from 0 to 16.",
        ),
        (b"x" * (1 << 20) + b"x", "is larger than 1,024 KiB"),
    ):
        upload(page, data)
        expect(problem).to_contain_text(said)
        expect(page.locator('[data-file="status"]')).to_have_text("")


def test_a_file_while_prediction_is_away_and_cancelled(
    open_page: Open, gateway: Gateway, model: Model
) -> None:
    page = open_page()
    gateway.mode = "unready"
    section = upload(page, rows(100, model))
    expect(section.locator('[data-file="problem"]')).to_contain_text(
        "Still waiting: no prediction host"
    )
    gateway.mode = "up"
    expect(section.locator('[data-file="status"]')).to_have_text("100 rows predicted.")
    gateway.mode = "unready"
    upload(page, rows(100, model))
    expect(section.locator('[data-file="problem"]')).to_contain_text("Still waiting")
    section.get_by_role("button", name="Cancel").click()
    expect(section.locator('[data-file="status"]')).to_have_text("Cancelled.")
    expect(section).to_have_attribute("data-state", "idle")


# -- prediction away ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("dead", "the prediction service cannot be reached"),
        ("limited", "too many predictions at once"),
    ],
)
def test_every_prediction_host_is_dead(
    open_page: Open, gateway: Gateway, mode: str, said: str, screenshots: Path
) -> None:
    gateway.mode = mode
    page = open_page()
    cells = page.locator("#pixels [role=gridcell]")
    for index in (9, 17, 25, {"dead": 33, "limited": 35}[mode]):
        cells.nth(index).click()
    state(page, "failed")
    expect(page.locator("#problem")).to_contain_text(f"No prediction: {said}")
    expect(page.locator("#certainty")).to_be_visible()
    expect(page.locator("#timing dt")).to_have_text("No answer yet")
    expect(page.locator(".gallery li")).to_have_count(48)  # the rest of the page lives
    if mode == "dead":
        expect(status(page, "prediction")).to_have_attribute("data-health", "bad")
        page.screenshot(path=screenshots / "page-prediction-dead.png")
        gateway.mode = "up"
        state(page, "answered")  # by itself
        expect(page.locator("#problem")).to_be_empty()


def test_stale_then_fresh_again(open_page: Open, gateway: Gateway, screenshots: Path) -> None:
    page = open_page()
    draw_seven(page)
    source(page, "prediction")
    gateway.mode = "unready"
    page.get_by_role("button", name="Clear").click()
    draw_seven(page)
    source(page, "stale")
    expect(page.locator("#source")).to_contain_text(
        "Stale: the service's answer for the same image, just now"
    )
    expect(page.locator("#problem")).to_contain_text("Now: no prediction host is ready")
    assert "Waiting for the service" in page.locator("#timing dt").all_inner_texts()
    page.screenshot(path=screenshots / "page-stale.png")
    gateway.mode = "up"
    source(page, "prediction")
    expect(page.locator("#problem")).to_be_empty()


def test_fallback_to_the_batch_run(open_page: Open, gateway: Gateway) -> None:
    gateway.mode = "unready"
    page = open_page()
    item = page.locator(".gallery li").nth(11)
    item.get_by_role("button").click()
    source(page, "fallback")
    expect(page.locator("#source")).to_contain_text(
        "Fallback: what the last batch run predicted for the same image"
    )
    expect(page.locator("#digit")).to_have_text(item.inner_text().split()[0])


def test_a_slow_service_is_waited_for_or_not(
    open_page: Open, gateway: Gateway, screenshots: Path
) -> None:
    gateway.mode = "held"
    page = open_page()
    cells = page.locator("#pixels [role=gridcell]")
    cells.nth(3).click()
    waiting = page.locator("#waiting")
    expect(waiting.get_by_role("status")).to_have_text("Still waiting for the answer…")
    expect(waiting).to_be_visible()
    page.screenshot(path=screenshots / "page-waiting.png")
    waiting.get_by_role("button", name="Stop waiting").click()
    state(page, "stopped")
    expect(waiting).to_be_hidden()
    expect(page.locator("#problem")).to_contain_text("Stopped waiting")
    expect(page.get_by_role("button", name="Clear")).to_be_focused()
    gateway.mode = "up"
    gateway.release.set()
    cells.nth(11).click()
    state(page, "answered")


# -- the store away -------------------------------------------------------------------------------


@pytest.fixture
def other_store(model: Model, store: Store, url: str) -> Iterator[Store]:
    """The bucket emptied; afterwards as it was."""
    store.empty()
    yield store
    store.empty()
    store.publish(RUN)


def test_the_batch_run_is_missing_and_then_comes(
    open_page: Open, other_store: Store, gateway: Gateway, tmp_path: Path
) -> None:
    environment = {"PREDICTION_URL": gateway.url, "AWS_ENDPOINT_URL": other_store.endpoint}
    with stand_ins.application(tmp_path, environment) as started:
        page = open_page(f"{started}/")
        expect(page.locator("[data-empty]")).to_be_visible()
        expect(status(page, "batch").locator("span")).to_have_text("no run yet")
        expect(page.locator(".filters")).to_be_hidden()
        draw_seven(page)
        source(page, "prediction")
        other_store.publish(RUN, rows=120)
        expect_run(started)
        page.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator(".gallery li").first).to_be_visible()
        expect(page.locator('[data-figure="rows"]')).to_have_text("121")
        other_store.client.put_object(
            Bucket=stand_ins.BUCKET, Key=f"predictions/{stand_ins.JOB}/LATEST", Body=b"{"
        )
        expect(status(page, "batch").locator("span")).to_contain_text(
            "a newer one cannot be loaded"
        )
        expect(page.locator(".gallery li")).to_have_count(48)


# -- the network ----------------------------------------------------------------------------------


def test_the_application_goes_away_and_comes_back(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".gallery li")).to_have_count(48)

    def gone(route: Route) -> None:
        route.abort()

    page.route("**/api/**", gone)
    draw_seven(page)
    state(page, "failed")
    expect(page.locator("#problem")).to_contain_text("the server cannot be reached")
    expect(status(page, "prediction").locator("span")).to_contain_text("not known")
    page.get_by_label("Predicted", exact=True).select_option("3")
    expect(page.locator("#batch [data-problem]")).to_contain_text("This may be out of date")
    expect(page.locator(".gallery li")).to_have_count(48)
    page.unroute("**/api/**", gone)
    state(page, "answered")
    expect(status(page, "prediction")).to_have_attribute("data-health", "good")


def test_a_slow_network(open_page: Open) -> None:
    page = open_page()
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    slow = {
        "offline": False,
        "latency": 2000,
        "downloadThroughput": 20_000,
        "uploadThroughput": 20_000,
    }
    session.send("Network.emulateNetworkConditions", slow)
    page.locator("#pixels [role=gridcell]").nth(20).click()
    expect(page.locator("#waiting")).to_be_visible()
    expect(page.locator("body")).to_have_attribute("data-state", "answered", timeout=20_000)
    expect(page.locator("#waiting")).to_be_hidden()
    assert "Network to the page" in page.locator("#timing dt").all_inner_texts()


# -- whoever looks, from wherever -----------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(open_page: Open, scheme: str, screenshots: Path) -> None:
    page = open_page(
        viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme, device_scale_factor=2
    )
    fits(page)
    page.locator(".gallery li").first.get_by_role("button").tap()
    source(page, "prediction")
    expect(page.locator("#timing")).to_be_visible()
    expect(page.locator(".gallery li")).to_have_count(18)
    fits(page)
    page.screenshot(path=screenshots / f"page-phone-{scheme}.png", full_page=True)


def test_by_keyboard_alone(open_page: Open, model: Model, tmp_path: Path) -> None:
    page = open_page()
    expect(page.locator(".gallery li")).to_have_count(48)
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "() => { const e = document.activeElement; return e.id || e.dataset.do || e.textContent.trim().slice(0, 12); }"
            )
        )
    # Every control once, in the order of the page; the grid of 64 pixels is one stop.
    assert order[0] == "clear" and order[2:5] == ["An example", "file-input", "start"], order
    assert page.evaluate("() => document.activeElement.closest('#batch') !== null")
    page.keyboard.press("Enter")  # an image of the gallery
    source(page, "prediction")
    for _ in range(len(order)):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#pixels :focus")).to_have_count(1)
    page.keyboard.press("Escape")
    state(page, "empty")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown"):
        page.keyboard.press(key)
    state(page, "answered")
    select = page.get_by_label("Predicted", exact=True)
    select.focus()
    page.keyboard.press("7")
    expect(page.locator(".gallery li").first.locator("b")).to_have_text("7")
    after = page.get_by_role("button", name="Next")
    page.get_by_label("Predicted", exact=True).select_option("")
    after.focus()
    for _ in range(9):  # past the last page, where it is still focused
        page.keyboard.press("Enter")
        page.wait_for_timeout(60)
    expect(page.locator(".pager [role=status]")).to_have_text(part_of(337, 360, 360))
    expect(after).to_be_focused()


def test_a_screen_reader_is_told(open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".gallery li")).to_have_count(48)
    draw_seven(page)
    state(page, "answered")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, progress, [role=grid], [role=img], ol')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    for selector, kind in (
        ("#problem", "alert"),
        ('[data-file="status"]', "status"),
        ('[data-file="problem"]', "alert"),
        (".pager span", "status"),
    ):
        expect(page.locator(selector)).to_have_attribute("role", kind)
    told = page.locator("[aria-live=polite]").inner_text()
    assert "sure" in told and "By the prediction service" in told
    name = page.locator(".gallery li").first.get_by_role("button").get_attribute("aria-label") or ""
    assert re.fullmatch(r"holdout-0000: \d, >?\d+% sure\. Predict this image", name)


def contrast(page: Page, selector: str) -> float:
    """Of the text of the first match with the card behind it (WCAG 2.2, 1.4.3)."""
    return float(
        page.evaluate(
            """(selector) => {
                const light = (text) => {
                    const parts = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((value) => value / 255)
                        .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
                };
                const element = document.querySelector(selector);
                const behind = getComputedStyle(element.closest('.card') ?? document.body).backgroundColor;
                const both = [light(getComputedStyle(element).color), light(behind)].sort((a, b) => b - a);
                return (both[0] + 0.05) / (both[1] + 0.05);
            }""",
            selector,
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(
    open_page: Open, gateway: Gateway, scheme: str, screenshots: Path
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": 1180, "height": 1500})
    draw_seven(page)
    source(page, "prediction")
    expect(page.locator(".gallery li")).to_have_count(48)
    for selector in (
        "h1",
        ".keys",
        "#certainty",
        "#source",
        "#timing dt",
        ".about",
        ".about a",
        "#problem",
        ".gallery span",
        "[data-health] span",
    ):
        assert contrast(page, selector) >= 4.5, selector
    if scheme == "dark":
        page.screenshot(path=screenshots / "page-all-dark.png", full_page=True)


# -- other ways to run it -------------------------------------------------------------------------


def test_below_a_prefix_and_without_scripts_from_elsewhere(
    open_page: Open, gateway: Gateway, store: Store, tmp_path: Path
) -> None:
    environment = {
        "PREDICTION_URL": gateway.url,
        "AWS_ENDPOINT_URL": store.endpoint,
        "ROUTE_PREFIX": "/reports/",
    }
    with stand_ins.application(tmp_path, environment) as started:
        asked: list[str] = []
        page = open_page(f"{started}/reports")
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        expect(page.locator(".gallery li")).to_have_count(48)
        draw_seven(page)
        source(page, "prediction")
        assert asked and all(address.startswith(f"{started}/reports/") for address in asked), asked
