"""How an image flows through the server: read, decoded exactly as by `predict`, predicted together with whatever else waits.

A request is admitted or told to come again. Its body is read once there is a place, and the pixels of its images wait in a bounded
queue for one worker. So memory is bounded by the constants below, however many requests come.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from config import InputError
from images.files import printable, read_image
from learning.inference import TrainedNetwork, predict_logits
from results.canvas import data_uri
from results.explaining import Explainer, enlarged, png
from results.listening import in_background
from results.predictions import as_json_list

MAX_BODY = 32 * 2**20
"""Bytes of an upload."""
MAX_FILES = 16
"""Images of an upload."""
MAX_PIXELS = 8192 * 6144
"""Of an image: what the cameras of phones take."""
LARGE = 2**23
"""Pixels of an image from which only one is decoded at a time: it takes up to two gigabytes."""
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
            async with in_background(self._work()):
                yield

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
