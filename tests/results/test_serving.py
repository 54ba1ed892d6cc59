"""The server of trained weights: the answers of `predict`, refusals in one line, requests of other pages, many requests at once."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, assert_refused, run_main
from utils import resolve_device

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
import httpx2
from starlette.testclient import TestClient

from learning.inference import TrainedNetwork
from results import service, serving

WEIGHTS = ROOT / "weights" / "fast85.safetensors"
HERE = "http://127.0.0.1:8000"
pytestmark = pytest.mark.skipif(find_spec("pytorch_grad_cam") is None, reason="requirements-serve.txt is not installed")


@pytest.fixture(scope="module")
def network() -> TrainedNetwork:
    return TrainedNetwork.load(WEIGHTS, resolve_device("auto"))


@pytest.fixture(scope="module")
def client(network) -> Iterator[TestClient]:
    with TestClient(serving.make_app(network, WEIGHTS), base_url=HERE) as client:
        yield client


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size)


def odd_images() -> dict[str, bytes]:
    """Files of several kinds for which something must be done before a network can take them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    clear = photo(2).convert("RGBA")
    clear.putalpha(100)
    deep = Image.fromarray(np.random.default_rng(3).integers(0, 4096, (40, 50), dtype=np.uint16))
    return {
        "plain.png": encoded(photo(0, (32, 32))),
        "turned.jpg": encoded(photo(1), "JPEG", exif=exif),
        "clear.png": encoded(clear),
        "deep.png": encoded(deep),
        "moving.gif": encoded(photo(4), "GIF", save_all=True, append_images=[photo(5)]),
        "large.jpg": encoded(photo(6, (1500, 900)), "JPEG"),
        "grey.tif": encoded(photo(7).convert("L"), "TIFF"),
        "modern.webp": encoded(photo(8), "WEBP"),
        "\u732b <b>.bmp": encoded(photo(9), "BMP"),
    }


def upload(client: TestClient, *files: tuple[str, bytes], **options: object) -> httpx2.Response:
    return client.post("/predict", files=[("file", file) for file in files], **options)


def assert_error(response: httpx2.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"] and "\n" not in response.json()["error"] and "Traceback" not in response.text
    for word in words:
        assert word in response.json()["error"]


def test_the_answers_are_those_of_predict(client, tmp_path):
    files = odd_images()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = run_main("predict", "--json", "--top", 10, "--weights", WEIGHTS, *(tmp_path / name for name in files))
    expected = json.loads(result.stdout)["predictions"]
    response = upload(client, *files.items())
    assert response.status_code == 200, response.text
    answered = response.json()["predictions"]
    assert [answer["file"] for answer in answered] == list(files)
    for ours, answer in zip(expected, answered, strict=True):
        assert answer["changes"] == ours["changes"]
        values = [each["probability"] for each in answer["top"]]
        assert len(values) == 10 and values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=0.01)
        ours = {each["class"]: each["probability"] for each in ours["top"]}
        assert {each["class"]: each["probability"] for each in answer["top"]} == pytest.approx(ours, abs=0.01)  # bf16
        assert "grad_cam" not in answer


def test_explained_answers_have_pictures(client):
    answer = upload(client, ("a.png", encoded(photo())), params={"explain": "true"}).json()["predictions"][0]
    assert answer["image"].startswith("data:image/png;base64,") and answer["grad_cam"].startswith("data:image/png;base64,")
    assert answer["image"] != answer["grad_cam"]


def bomb(width: int, height: int) -> bytes:
    """A PNG file of some kilobytes that claims, and has, that many black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\0" * width
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", data)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a readable image"),
        (b"hello", "is not a readable image"),
        (POSTSCRIPT, "is not a readable image"),
        (b"%PDF-1.4\n", "is not a readable image"),
        (encoded(photo())[:-60], "is not a readable image"),
        (encoded(photo(), "JPEG")[:400], "is not a readable image"),
        (encoded(Image.new("F", (40, 40), 0.5), "TIFF"), "floating-point"),
        ((9000, 6000), "too many pixels"),
        ((20000, 10000), "too many pixels"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(client, content, words):
    content = bomb(*content) if isinstance(content, tuple) else content  # made here, for it takes its time
    response = upload(client, ("good.png", encoded(photo())), ("x/bad\n.png", content))
    assert_error(response, 400, words, "bad")
    assert "/tmp" not in response.text  # nor any other place on this machine


def test_uploads_are_limited(client, monkeypatch):
    good = ("good.png", encoded(photo()))
    assert len(upload(client, *[good] * service.MAX_FILES).json()["predictions"]) == service.MAX_FILES
    assert_error(upload(client, *[good] * (service.MAX_FILES + 1)), 400, "Too many files")
    monkeypatch.setattr(service, "MAX_BODY", 2**20)
    assert_error(upload(client, good, ("big.png", b"x" * 2**20)), 413, "at most 1 MiB")

    def without_a_length() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(20):
            yield b"x" * 2**16

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert_error(client.post("/predict", content=without_a_length(), headers=headers), 413, "at most 1 MiB")
    assert upload(client, good).status_code == 200


def test_what_is_no_upload_is_refused(client):
    assert_error(client.post("/predict"), 400, "multipart/form-data")
    assert_error(client.post("/predict", json={"image": "a.png"}), 400, "multipart/form-data")
    assert_error(client.post("/predict", content=encoded(photo()), headers={"content-type": "image/png"}), 400)
    assert_error(client.post("/predict", content=b"--", headers={"content-type": "multipart/form-data"}), 400)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert_error(client.post("/predict", content=b"no boundary in here", headers=headers), 400)
    assert_error(client.post("/predict", data={"file": "a.png"}, files={"other": ("", b"")}), 400)
    assert_error(upload(client, ("a.png", encoded(photo())), params={"explain": "perhaps"}), 400, "true or false")
    assert_error(client.get("/predict"), 405)
    for missing in ("/docs", "/openapi.json", "/../main.py", "/favicon.ico"):
        assert_error(client.get(missing), 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"origin": HERE}, 200),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # through a tunnel
        ({"host": "evil.example"}, 403),  # its name server says 127.0.0.1
        ({"host": "127.0.0.1.evil.example:8000", "origin": "http://127.0.0.1.evil.example:8000"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": "[::"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),  # another server of this machine
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "https://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),  # a page from a file, or in a sandboxed frame
    ],
)
def test_other_web_pages_are_refused(client, headers, status):
    response = upload(client, ("a.png", encoded(photo())), headers=headers)
    assert response.status_code == status, response.text
    if status == 403:
        assert_error(response, 403)
    assert client.get("/", headers=headers).status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_the_page_needs_nothing_from_outside(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe-inline'; script-src 'self'" in page.headers["content-security-policy"]
    script = client.get("/serve.js")
    assert "javascript" in script.headers["content-type"] and "http" not in script.text
    assert "http" not in page.text.replace("http-equiv", "") and "airplane" in page.text and "93." not in page.text
    for label in ("file", "camera"):
        assert f'<label class="button" for="{label}">' in page.text
    assert 'capture="environment"' in page.text and 'aria-live="polite"' in page.text


def test_names_from_a_card_cannot_break_out(network, tmp_path):
    card = network.card | {"classes": ["<script>alert(1)</script>", *network.card["classes"][1:]], "dataset": "folder:<b>"}
    evil = TrainedNetwork(network.model, card, network.device, network.precision)
    with TestClient(serving.make_app(evil, tmp_path / "<i>.safetensors"), base_url=HERE) as client:
        page = client.get("/").text
    assert "&lt;script&gt;alert" in page and not any(tag in page for tag in ("<script>", "<b>", "<i>"))


def test_a_network_that_cannot_be_explained_is_served_all_the_same(network, monkeypatch, capsys):
    monkeypatch.setattr("results.explaining.MIN_MAPS", 1000)
    with TestClient(serving.make_app(network, WEIGHTS), base_url=HERE) as client:
        assert "There is no explanation: the network has no convolution layer" in client.get("/").text
        answer = upload(client, ("a.png", encoded(photo())), params={"explain": "true"}).json()["predictions"][0]
    assert "image" in answer and "grad_cam" not in answer
    assert capsys.readouterr().err.startswith("note: predictions are not explained")


def test_a_network_that_fails_is_an_error_in_one_line_and_the_next_request_is_answered(network, monkeypatch, capsys):
    real, calls = service.predict_logits, []

    def fail_once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("out of\nsorts")
        return real(*arguments)

    monkeypatch.setattr(service, "predict_logits", fail_once)
    with TestClient(serving.make_app(network, WEIGHTS), base_url=HERE) as client:
        assert_error(upload(client, ("a.png", encoded(photo()))), 500, "ValueError: out of sorts")
        assert upload(client, ("a.png", encoded(photo()))).status_code == 200
    assert capsys.readouterr().err == "error: a request failed: ValueError: out of sorts\n"


def at_once(network: TrainedNetwork, count: int) -> list[httpx2.Response]:
    """The answers to that many requests, all sent before the first is answered."""

    async def ask() -> list[httpx2.Response]:
        app = serving.make_app(network, WEIGHTS)
        transport = httpx2.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            return await asyncio.gather(
                *(client.post("/predict", files={"file": (f"{i}.png", encoded(photo(i, (32, 32))))}) for i in range(count))
            )

    return asyncio.run(ask())


def test_requests_at_once_are_predicted_together_and_each_gets_its_own_answer(network, monkeypatch):
    batches, real = [], service.predict_logits

    def note(model: object, images: np.ndarray, *rest: object) -> object:
        batches.append(len(images))
        return real(model, images, *rest)

    monkeypatch.setattr(service, "predict_logits", note)
    monkeypatch.setattr(service, "QUEUE", 8)
    responses = at_once(network, 60)
    assert sum(batches) == 60 and max(batches) > 1 and max(batches) <= service.BATCH
    images = np.stack([np.asarray(photo(i, (32, 32))) for i in range(60)])
    expected = network.most_probable(network.logits(images), top=1)
    for i, response in enumerate(responses):
        assert response.status_code == 200
        (answer,) = response.json()["predictions"]
        assert answer["file"] == f"{i}.png"
        best = {each["class"]: each["probability"] for each in answer["top"]}
        assert best[expected[i][0][0]] == pytest.approx(expected[i][0][1], abs=0.03)  # bf16


def test_requests_beyond_the_limit_are_told_to_come_again(network, monkeypatch):
    monkeypatch.setattr(service, "MAX_REQUESTS", 5)
    responses = at_once(network, 20)
    refused = [response for response in responses if response.status_code == 503]
    assert 5 <= len(responses) - len(refused) < 20 and len(refused) > 0
    for response in refused:
        assert_error(response, 503, "try again")
        assert response.headers["retry-after"] == "1"


def test_an_upload_that_does_not_arrive_ends(client, monkeypatch):
    monkeypatch.setattr(service, "READ_SECONDS", 0.2)

    async def ask() -> list[dict]:
        sent: list[dict] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=b")],
        }

        async def never() -> dict:
            await asyncio.sleep(60)
            return {}

        async def send(message: dict) -> None:
            sent.append(message)

        async with client.app.router.lifespan_context(client.app):
            await client.app(scope, never, send)
        return sent

    assert asyncio.run(ask())[0]["status"] == 408


def test_what_cannot_be_served_is_said(tmp_path, monkeypatch):
    with serving.listen(0) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == "127.0.0.1"
        assert_refused(run_main("serve", "--weights", WEIGHTS, "--port", port), str(port), "in use", "--port")
    for wrong in (-1, 65536):
        assert_refused(run_main("serve", "--weights", WEIGHTS, "--port", wrong), "0 to 65535")
    assert_refused(run_main("serve", "--weights", tmp_path / "none.safetensors"), "cannot read")
    for package in ("fastapi", "uvicorn", "python_multipart", "pytorch_grad_cam"):
        monkeypatch.delitem(sys.modules, "results.serving", raising=False)
        monkeypatch.delattr("results.serving", raising=False)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert_refused(run_main("serve", "--weights", WEIGHTS), package, "pip install -r requirements-serve.txt")
