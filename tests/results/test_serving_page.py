"""`./run.sh serve` as people meet it: a process of its own, its page in a browser, a thousand requests, Ctrl-C."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from images import drawings

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
pytest.importorskip("playwright", reason="requirements-dev.txt is not installed")
import httpx2
from playwright.sync_api import BrowserContext, Page

WEIGHTS = ROOT / "weights" / "accurate.safetensors"
pytestmark = pytest.mark.slow
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


def start() -> tuple[subprocess.Popen, str]:
    """The server on a free port, and its address."""
    command = [sys.executable, ROOT / "main.py", "serve", "--weights", WEIGHTS, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    found = re.fullmatch(r"serving .*accurate\.safetensors on (http://127\.0\.0\.1:\d+)/ until Ctrl-C\n", line)
    assert found, (line, process.stderr.read())
    return process, found[1]


def stop(process: subprocess.Popen) -> str:
    """End it as Ctrl-C does; what it has said on stderr."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    return errors


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, address = start()
    yield address
    assert stop(process) == ""


def test_it_is_answered_while_requests_come_and_ends_with_ctrl_c():
    process, address = start()
    cat = cat_png()
    with httpx2.Client() as client:  # whose connection stays open
        answer = client.post(f"{address}/predict", files={"file": ("cat.png", cat)}, timeout=60).json()
        assert answer["predictions"][0]["top"][0]["class"] == "cat"
        assert stop(process) == ""


def test_a_thousand_requests_a_hundred_at_a_time(address):
    images = drawings.render()[0]
    files = [png(image) for image in images]

    async def ask() -> list[tuple[int, dict]]:
        places = asyncio.Semaphore(100)
        limits = httpx2.Limits(max_connections=100)
        async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as client:

            async def one(i: int) -> tuple[int, dict]:
                async with places:
                    response = await client.post("/predict", files={"file": (f"{i}.png", files[i % len(files)])})
                assert response.status_code == 200, response.text
                return i, response.json()["predictions"]

            return await asyncio.gather(*(one(i) for i in range(1000)))

    started = time.perf_counter()
    answers = asyncio.run(ask())
    print(f"1,000 requests, 100 at a time: {time.perf_counter() - started:.2f} s")
    first = {i: answer for i, (answer,) in answers[: len(files)]}
    for i, (answer,) in answers:
        assert answer["file"] == f"{i}.png"
        ours = first[i % len(files)]["top"]
        assert answer["top"][0]["class"] == ours[0]["class"]
        assert answer["top"][0]["probability"] == pytest.approx(ours[0]["probability"], abs=0.03)  # bf16, in other batches


def png(image: np.ndarray, size: tuple[int, int] = (32, 32)) -> bytes:
    from results.explaining import png

    return png(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST)))


def cat_png() -> bytes:
    return png(drawings.render()[0][6], (640, 480))


@pytest.fixture(params=[("phone", "light"), ("phone", "dark"), ("desktop", "light"), ("desktop", "dark")], ids="-".join)
def context(request, browser, address) -> Iterator[BrowserContext]:
    """A browser of that size and scheme which reaches the server and nothing else."""
    size, scheme = request.param
    width, height = SIZES[size]
    is_phone = size == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=is_phone,
        is_mobile=is_phone,
        permissions=["clipboard-read", "clipboard-write"],
        base_url=address,
    )
    yield context
    context.close()


@pytest.fixture
def page(context, address) -> Iterator[Page]:
    page = context.new_page()
    faults, elsewhere = [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url))
    page.goto("/")
    yield page
    assert [fault for fault in faults if "400 (Bad Request)" not in fault and "413" not in fault] == []
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


def assert_shows_a_cat(page: Page) -> None:
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    assert re.search(r": cat, \d+\.\d%$", page.inner_text("#status"))
    rows = [item.split() for item in page.locator("#bars li").all_inner_texts()]
    assert len(rows) == 5 and rows[0][0] == "cat"
    shares = [float(share.rstrip("%")) for _, share in rows]
    assert shares == sorted(shares, reverse=True) and shares[0] > 50
    widths = page.evaluate("[...document.querySelectorAll('.track .bar')].map(bar => bar.offsetWidth / bar.parentNode.offsetWidth)")
    assert widths == pytest.approx([share / 100 for share in shares], abs=0.02)
    drawn = "[...document.querySelectorAll('.pictures img')].map(image => [image.complete, image.naturalWidth, image.alt])"
    page.wait_for_function(f"{drawn}.every(([complete, width]) => complete && width)")
    (_, width, _), (_, heat_width, alt) = page.evaluate(drawn)
    assert width == heat_width == 256 and "cat" in alt


def contrast(page: Page, selector: str) -> float:
    """Of the text of an element against what is behind it, as WCAG computes it."""
    colours = page.evaluate(
        """(selector) => {
            let element = document.querySelector(selector);
            const text = getComputedStyle(element).color;
            let behind = "rgba(0, 0, 0, 0)";
            for (; element && behind === "rgba(0, 0, 0, 0)"; element = element.parentElement)
                behind = getComputedStyle(element).backgroundColor;
            return [text, behind];
        }""",
        selector,
    )
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_an_image_is_chosen_and_classified(page, request, tmp_path):
    (tmp_path / "cat.png").write_bytes(cat_png())
    is_phone = "phone" in request.node.name
    assert page.locator("text=Take a photograph").is_visible() == is_phone
    assert page.get_attribute("#camera", "capture") == "environment"
    page.set_input_files("#camera" if is_phone else "#file", tmp_path / "cat.png")
    assert_shows_a_cat(page)
    assert "resized from 640x480 to 32x32" in page.inner_text("#changes")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing to be scrolled sideways
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == ("dark" in request.node.name)
    for selector in ("h1", "header .soft", "label.button", "#hint", "#status", "#bars li", "figcaption", "#changes"):
        assert contrast(page, selector) >= 4.5, selector
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{request.node.callspec.id}.png", full_page=True)


DROP = """([name, type, content, kind]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], name, { type }));
    const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true })
        : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
    return event.defaultPrevented;
}"""


def give(page: Page, kind: str, name: str, content: bytes, type: str = "image/png") -> bool:
    """Drop or paste a file; whether the browser is kept from opening it."""
    return page.evaluate(DROP, [name, type, base64.b64encode(content).decode(), kind])


@pytest.mark.parametrize("context", [("desktop", "light")], indirect=True, ids="-".join)
def test_an_image_is_dropped_or_pasted_and_what_is_none_is_said(page):
    assert give(page, "drop", "cat.png", cat_png())
    assert_shows_a_cat(page)
    give(page, "drop", "notes.txt", b"hello", "text/plain")
    page.wait_for_selector("#status.fail")
    assert "notes.txt is not a readable image" in page.inner_text("#status")
    assert page.locator("#result").is_hidden()
    give(page, "paste", "image.png", cat_png())
    assert_shows_a_cat(page)
    page.evaluate("classify(new File([new Uint8Array(33 * 2 ** 20)], 'large.png'))")
    assert "large.png is too large" in page.inner_text("#status.fail")
    page.evaluate("document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert "no image in what you pasted" in page.inner_text("#status.fail")


@pytest.mark.parametrize("context", [("desktop", "light")], indirect=True, ids="-".join)
def test_the_keyboard_is_enough(page, tmp_path):
    (tmp_path / "cat.png").write_bytes(cat_png())
    with page.expect_file_chooser() as chooser:  # from here on: the browser has to be told before it opens one of its own
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        assert page.evaluate("getComputedStyle(document.querySelector('label[for=file]')).outlineStyle") == "solid"
        page.keyboard.press("Space")
    chooser.value.set_files(tmp_path / "cat.png")
    assert_shows_a_cat(page)
    names = page.evaluate("[...document.querySelectorAll('input')].map(input => input.labels[0].textContent)")
    assert names == ["Choose an image", "Take a photograph"]
    assert all(page.evaluate("[...document.querySelectorAll('img')].map(image => image.alt)"))
    assert page.get_attribute("#status", "role") == "status"


@pytest.mark.parametrize("context", [("desktop", "light")], indirect=True, ids="-".join)
def test_another_page_cannot_use_the_server(context, address):
    """A page of another server of this machine, in the same browser, posts an image to this one."""
    other = context.new_page()
    other.route("http://elsewhere.test/", lambda route: route.fulfill(body="<p>hello", content_type="text/html"))
    other.goto("http://elsewhere.test/")
    send = """async ([address, mode]) => {
        const body = new FormData();
        body.append("file", new Blob(["x"]), "a.png");
        try { return (await fetch(address + "/predict", { method: "POST", body, mode })).type; } catch { return "failed"; }
    }"""
    statuses = []
    other.on("response", lambda response: statuses.append(response.status))
    assert other.evaluate(send, [address, "cors"]) == "failed"
    assert other.evaluate(send, [address, "no-cors"]) in ("opaque", "failed")
    assert 200 not in statuses and 400 not in statuses  # it was not even looked at
    frames = context.new_page()
    frames.route("http://elsewhere.test/", lambda route: route.fulfill(body=f"<iframe src={address}/>", content_type="text/html"))
    frames.goto("http://elsewhere.test/")
    frames.wait_for_timeout(500)
    assert not any("Choose an image" in (frame.content() or "") for frame in frames.frames)


@pytest.mark.parametrize("context", [("desktop", "light")], indirect=True, ids="-".join)
def test_a_server_that_has_ended_is_said(context):
    process, address = start()
    page = context.new_page()
    page.goto(address)
    stop(process)
    give(page, "drop", "cat.png", cat_png())
    page.wait_for_selector("#status.fail")
    assert "is it still running" in page.inner_text("#status")
