"""What every request passes: where it is from, how often it comes, how large it is, and that a form is one of ours."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from results.guard import name_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READ_SECONDS = 30  # for a body to arrive
SMALL = 20_000  # bytes of a form without files
HEADERS = {
    "Cache-Control": "no-store",
    # Nothing is loaded from elsewhere, and no script or style that stands in a page is run: what a student has written never is.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with "no-referrer" browsers would hide the origin of our own forms, too
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def refusal(served: str) -> Callable[[str, str | None], PlainTextResponse | None]:
    """For `Guard`: the answer to requests under other names, and to those that other websites have browsers send.

    `served` is the website's origin where a proxy stands before it, or empty.
    """
    names = {*LOOPBACK, urlsplit(served).hostname} if served else set(LOOPBACK)

    def refuse(host: str, origin: str | None) -> PlainTextResponse | None:
        if name_of(host) not in names:
            return PlainTextResponse("this server does not have that name", 403)
        if origin is not None and origin not in (served, f"http://{host}" if name_of(host) in LOOPBACK else served):
            return PlainTextResponse("requests of other websites are refused", 403)
        return None

    return refuse


class Limiter:
    """Counts what somebody has done in the last `seconds`; of at most `most_known` people or addresses, then forgets the oldest."""

    def __init__(self, count: int, seconds: float, most_known: int = 10_000) -> None:
        self.count, self.seconds, self.most_known = count, seconds, most_known
        self.known: OrderedDict[object, deque[float]] = OrderedDict()

    def note(self, who: object) -> None:
        times = self.known.setdefault(who, deque(maxlen=self.count))
        times.append(time.monotonic())
        self.known.move_to_end(who)
        if len(self.known) > self.most_known:
            self.known.popitem(last=False)

    def demand(self, who: object, what: str) -> None:
        """Raises HTTPException (429) where it was done `count` times already."""
        times = self.known.get(who, deque())
        if len(times) < self.count:
            return
        wait = times[0] + self.seconds - time.monotonic()
        if wait > 0:
            raise HTTPException(429, f"too many {what}: try again in {wait + 1:.0f} s", {"Retry-After": f"{wait + 1:.0f}"})


def csrf_of(cookie: str) -> str:
    """What a form must hold to be one of ours: only who can read the cookie, which no script can, can compute it."""
    return hashlib.sha256(f"form {cookie}".encode()).hexdigest()


def demand_ours(form: FormData, cookie: str | None) -> None:
    """Raises HTTPException (403) where the form has not come from a page that this browser was given."""
    value = form.get("csrf")
    if not cookie or not isinstance(value, str) or not secrets.compare_digest(value.encode(), csrf_of(cookie).encode()):
        raise HTTPException(403, "this form has expired: go back, load the page again and repeat it")


async def read_form(request: Request, longest: int = SMALL, files: int = 0) -> FormData:
    """The form of a request, which may have so many bytes and files. Raises HTTPException."""
    received = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > longest or _claimed(request) > longest:
            while message.get("more_body", False) and received < 8 * longest:  # many clients listen only when all is sent
                message = await request.receive()
                received += len(message.get("body", b""))
            raise HTTPException(413, f"that is too large: at most {longest:,} bytes are taken")
        return message

    form = Request(request.scope, receive).form(max_files=files, max_fields=10)
    try:
        return await asyncio.wait_for(form, READ_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the form did not arrive within {READ_SECONDS} seconds") from None


def _claimed(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0
