"""`course serve` as people meet it: a process of its own, its pages in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ROOT

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from browsing import packed, three

from course.roster import Listed, Roster
from course.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@dataclass
class Running:
    """A server, and who may log in to it."""

    process: subprocess.Popen
    address: str
    store: Path
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("course") / "store.sqlite"
    names = [f"{size}-{scheme}" for size in SIZES for scheme in ("light", "dark")]
    with Store(path) as store:
        made = Roster(store).add([Listed(name, name, "") for name in names])
        tokens = {student.number: token for student, token in made} | {"teacher": Roster(store).add_teacher("T. Cher")}
    command = [sys.executable, ROOT / "main.py", "course", "serve", "--store", path, "--assignment", "c1c2c3c4o", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=path.parent)
    line = process.stdout.readline()
    found = re.fullmatch(r"serving .*store\.sqlite on (http://127\.0\.0\.1:\d+)/ until Ctrl-C\n", line)
    assert found, (line, process.stderr.read())
    yield Running(process, found[1], path, tokens)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == ""


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        if os.environ.get("CI") and not os.environ.get("CONVSPRINT_WITHOUT_BROWSER"):
            pytest.fail("no Chromium: .ci/run installs it where it can (apt-get install chromium)")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="requirements-dev.txt is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # as root it has none
        yield browser
        browser.close()


def log_in(page, token: str) -> None:
    page.goto("/")
    page.fill("#token", token)
    page.keyboard.press("Enter")
    page.wait_for_selector("nav")


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("phone", "dark"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in [("phone", "light"), ("desktop", "light"), ("desktop", "dark")]),
    ],
)
def test_log_in_upload_and_watch(server, browser, tmp_path, size, scheme):
    width, height = SIZES[size]
    is_phone = size == "phone"
    number = f"{size}-{scheme}"
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": is_phone, "is_mobile": is_phone}
    context = browser.new_context(base_url=server.address, **options)
    page = context.new_page()
    faults, elsewhere = [], []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("warning", "error") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url))
    log_in(page, server.tokens[number])
    cookies = {cookie["name"]: cookie for cookie in context.cookies()}
    assert set(cookies) == {"session"} and cookies["session"]["secure"] and cookies["session"]["httpOnly"]
    assert page.evaluate("document.cookie") == ""

    bare = three(number)
    bare["model.py"] = bare["model.py"].replace(b"x: torch.Tensor", b"x")
    (tmp_path / "hw.zip").write_bytes(packed(bare))
    page.set_input_files("#files", tmp_path / "hw.zip")
    page.click("text=Upload")
    page.wait_for_selector("[data-waiting]")
    assert "forward of Model has no annotation for x" in page.inner_text(".findings")
    assert page.inner_text("[data-waiting]") == "place 1 of 1 in the queue"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing to be scrolled sideways
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")
    assert page.evaluate("[...document.querySelectorAll('input:not([type=hidden])')].every(each => each.labels.length)")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"course-{number}.png", full_page=True)

    with Store(server.store) as store:  # what a grader does; the page follows without a click
        taken, _ = store.take()
        assert store.keep(taken.id, "run 1 of 3: training, epoch 2, 41.00%")
        page.wait_for_selector("[data-waiting]:has-text('epoch 2, 41.00%')")
        store.finish(taken.id, "failed", "not above 55%", None, {"runs": []})
    page.wait_for_selector(".state.failed")
    assert "not above 55%" in page.inner_text(f"#s{taken.id}")
    page.click("text=Board")
    assert "Nothing is graded yet" in page.inner_text("main")

    page.click("text=Log out")
    page.wait_for_selector("#token")
    log_in(page, server.tokens["teacher"])
    page.click(f"#s{taken.id} >> text=Grade again")
    page.wait_for_selector(f"#s{taken.id} [data-waiting]")
    page.click(f"#s{taken.id} >> text=Cancel")
    page.wait_for_selector(f"#s{taken.id} .state.cancelled")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"course-teacher-{number}.png", full_page=True)
    context.close()
    assert faults == []
    assert [url for url in elsewhere if not url.startswith((server.address, "data:"))] == []
