"""Trained weights behind a page and an interface for programs, both on this machine alone: `./run.sh serve`.

The way of an image: a request is admitted or told to come again, its body is read, each file is decoded exactly as by `predict`,
and its pixels wait in a bounded queue. One worker predicts whatever waits, up to a batch at a time. So memory is bounded by the
constants below, however many requests come.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import python_multipart  # noqa: F401 (fastapi asks for it only at the first upload)
import pytorch_grad_cam  # noqa: F401 (this too is asked for now)
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from config import InputError
from images.files import printable, read_image
from learning.inference import TrainedNetwork, predict_logits
from results.canvas import data_uri
from results.explaining import Explainer, enlarged, png
from results.predictions import as_json_list
from results.report import render

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""What browsers may call this machine. Another name is that of a web page whose name server has turned to 127.0.0.1."""
MAX_BODY = 32 * 2**20
"""Bytes of an upload."""
MAX_FILES = 16
"""Images of an upload."""
MAX_PIXELS = 8192 * 6144
"""Of an image: what the cameras of phones take."""
LARGE = 2**23
"""Pixels of an image from which only one is decoded at a time: it takes up to a gigabyte."""
MAX_REQUESTS = 512
"""Requests that wait or are worked on; more are told to come again."""
READERS = 8
"""Requests whose bodies are read and decoded at a time; the others wait unread."""
READ_SECONDS = 60
"""For a body to arrive."""
QUEUE = 256
"""Decoded images that wait for the network."""
BATCH = 64
"""Images that are predicted together, at most."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Pillow's names of what is taken. Among its others is PostScript, which it would run."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HERE = Path(__file__).parent

Scope = MutableMapping[str, Any]


@dataclass
class Waiting:
    """An image that waits for the network."""

    image: np.ndarray
    """(H, W, C) uint8, of the network's size."""
    explain: bool
    answer: asyncio.Future[dict[str, Any]]


class Service:
    """A network and what waits for it."""

    def __init__(self, network: TrainedNetwork, explainer: Explainer | None) -> None:
        self.network, self.explainer = network, explainer
        self.card = network.card
        self.predictor = network.predictor()
        self.requests = 0  # admitted and not yet answered
        self.large = threading.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers inside the block."""
        self.readers = asyncio.Semaphore(READERS)
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue(QUEUE)
        with ThreadPoolExecutor(2) as self.decoders, ThreadPoolExecutor(1) as self.worker:
            work = asyncio.create_task(self._work())
            try:
                yield
            finally:
                work.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < BATCH and not self.queue.empty():  # what has come meanwhile
                batch.append(self.queue.get_nowait())
            answers: Sequence[dict[str, Any] | Exception]
            try:
                answers = await loop.run_in_executor(self.worker, self._answer, batch)
            except Exception as error:  # of the user's own network, maybe: the next batch is another chance
                answers = [error] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.cancelled():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)

    def _answer(self, batch: Sequence[Waiting]) -> list[dict[str, Any]]:
        images, network, classes = np.stack([waiting.image for waiting in batch]), self.network, self.card["classes"]
        logits = predict_logits(self.predictor, images, self.card["mean"], self.card["std"], network.device, network.precision)
        answers: list[dict[str, Any]] = [{"top": as_json_list(top)} for top in network.most_probable(logits, len(classes))]
        explained = [i for i, waiting in enumerate(batch) if waiting.explain]
        for i, image in zip(explained, enlarged(images[explained]), strict=True):
            answers[i]["image"] = data_uri(png(image))
        if self.explainer:
            pictures = self.explainer.pictures(images[explained], logits[explained].argmax(1).numpy())
            for i, picture in zip(explained, pictures, strict=True):
                answers[i]["grad_cam"] = data_uri(png(picture))
        return answers

    async def predict(self, request: Request, explain: bool) -> list[dict[str, Any]]:
        """What the network says of each image in the body. Raises HTTPException or InputError where there is no answer."""
        if self.requests >= MAX_REQUESTS:
            await _discard(request)
            raise HTTPException(503, f"busy: {self.requests} requests are waiting; try again", {"Retry-After": "1"})
        self.requests += 1
        try:
            async with self.readers:
                read = await self._read(request)
                images = [Waiting(image, explain, asyncio.get_running_loop().create_future()) for _, image, _ in read]
                for image in images:
                    await self.queue.put(image)
            answers = await asyncio.gather(*(image.answer for image in images))
            return [{"file": name, "changes": changes, **answer} for (name, _, changes), answer in zip(read, answers, strict=True)]
        finally:
            self.requests -= 1

    async def _read(self, request: Request) -> list[tuple[str, np.ndarray, list[str]]]:
        """Name, pixels and changes of each image in the body."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(400, "send image files as multipart/form-data: curl -F file=@cat.jpg")
        loop, limited = asyncio.get_running_loop(), _limited(request)
        try:
            form = await asyncio.wait_for(limited.form(max_files=MAX_FILES, max_fields=MAX_FILES), READ_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the upload did not arrive within {READ_SECONDS} seconds") from None
        try:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile) and value.filename]
            if not files:
                raise HTTPException(400, "there is no file in the upload: send one or more images")
            read = []
            for file in files:
                name = printable(file.filename or "")[:200]
                read.append((name, *await loop.run_in_executor(self.decoders, self._decode, file.file, name)))
            return read
        finally:
            await form.close()

    def _decode(self, file: BinaryIO, name: str) -> tuple[np.ndarray, list[str]]:
        """Pixels and changes of an image file as `predict` has them. Raises InputError where it is none, or has too many pixels."""
        try:
            with Image.open(file, formats=FORMATS) as image:  # reads the head alone
                width, height = image.size
        except Image.DecompressionBombError:
            raise _too_many_pixels(name) from None
        except Exception as error:  # decoders meet damaged files with exceptions of any kind
            raise InputError(f"{name} is not a readable image: PNG, JPEG, BMP, GIF, TIFF, WebP, PPM and PGM are taken") from error
        if width * height > MAX_PIXELS:
            raise _too_many_pixels(name)
        file.seek(0)
        with contextlib.ExitStack() as stack:
            if width * height > LARGE:
                stack.enter_context(self.large)
            copy = stack.enter_context(tempfile.NamedTemporaryFile())
            shutil.copyfileobj(file, copy)
            copy.flush()
            try:
                return read_image(Path(copy.name), self.card["num_channels"], *self.card["image_size"])
            except InputError as error:
                raise InputError(str(error).replace(copy.name, name)) from error


def _too_many_pixels(name: str) -> InputError:
    return InputError(f"{name} has too many pixels: at most {MAX_PIXELS // 10**6} megapixels are taken")


def _limited(request: Request) -> Request:
    """`request`, whose body may have MAX_BODY bytes: reading more raises HTTPException, once the rest has been thrown away."""
    received = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY or int(request.headers.get("content-length", 0)) > MAX_BODY:
            if message.get("more_body", False):
                await _discard(request)
            raise HTTPException(413, f"the upload is too large: at most {MAX_BODY // 2**20} MiB are taken")
        return message

    return Request(request.scope, receive)


async def _discard(request: Request) -> None:
    """Read the rest of the body, within bounds: many clients hear an answer only when they have sent everything."""
    received = 0
    while received < 8 * MAX_BODY:
        message = await request.receive()
        received += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class Guard:
    """Refuses what another web page has sent, and adds HEADERS to every answer.

    A page from anywhere can make a browser send requests to 127.0.0.1. It cannot hide where it is from: `Origin` names its address,
    and `Host` the name that it has given to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        answer = self.app
        if _name_of(host) not in NAMES:
            answer = JSONResponse({"error": f"this server is only for {HOST} and localhost"}, 403)
        elif origin is not None and origin != f"http://{host}":
            answer = JSONResponse({"error": "requests of other web pages are refused"}, 403)
        await answer(scope, receive, send_with_headers)


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def make_app(network: TrainedNetwork, weights: Path) -> FastAPI:
    """The server's application. Says on stderr where the network has no explanations; raises InputError where it takes no files."""
    network.demand_takes_files()
    try:
        explainer, unexplained = Explainer(network.model, network.card, network.device), ""
    except InputError as error:
        explainer, unexplained = None, str(error)
        print(f"note: predictions are not explained: {error}", file=sys.stderr)
    service = Service(network, explainer)
    page = render(
        HERE / "serve.html.jinja",
        title="Classify an image",
        weights=weights.stem,
        card=network.card,
        unexplained=unexplained,
        formats="PNG, JPEG, BMP, GIF, TIFF and WebP",
        max_bytes=MAX_BODY,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page)

    @app.get("/serve.js")
    async def script() -> Response:
        return FileResponse(HERE / "serve.js", media_type="text/javascript")

    @app.post("/predict")
    async def predict(request: Request, explain: bool = False) -> Response:
        try:
            return JSONResponse({"predictions": await service.predict(request, explain)})
        except InputError as error:
            return JSONResponse({"error": " ".join(str(error).split())}, 400)
        except ClientDisconnect:
            return Response(status_code=400)  # that nobody reads
        except HTTPException:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"error: a request failed: {reason}", file=sys.stderr, flush=True)
            return JSONResponse({"error": f"the network failed: {reason}"}, 500)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": "explain is true or false"}, 400)

    return app


def listen(port: int) -> socket.socket:
    """A socket on that port of this machine alone, or on any free one for 0. Raises InputError where it cannot be had."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended
        listener.bind((HOST, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or "it must be 0 to 65535"
        raise InputError(f"cannot listen on port {port}: {reason}; pass another --port, or 0 for any free one") from error
    return listener


def serve(network: TrainedNetwork, weights: Path, port: int) -> int:
    """Answer until Ctrl-C. Raises InputError where the port cannot be had."""
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in files that it can read
    with listen(port) as listener:
        config = uvicorn.Config(
            make_app(network, weights),
            lifespan="on",
            log_config=None,
            log_level="critical",  # what fails is said by the application, in a line
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        print(f"serving {weights} on http://{HOST}:{listener.getsockname()[1]}/ until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0
