"""The queue as it changes, for all pages that are open: one look at the store a second, however many people watch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from config import InputError
from course.progress import Waiting
from results.listening import in_background

POLL = 1.0  # seconds between two looks
QUIET = 15.0  # seconds after which something is sent, so that a proxy does not take the connection for dead
LASTS = 600.0  # seconds of a stream; then the browser comes again, if its user is still logged in
MAX_STREAMS = 3  # of a person


class Live:
    """Args:
    look: reads the queue from the store; may raise InputError.
    """

    def __init__(self, look: Callable[[], Awaitable[list[Waiting]]]) -> None:
        self.look = look
        self.queue: list[Waiting] = []
        self.streams: Counter[int] = Counter()  # person -> how many are open
        self.begun = self.done = 0  # looks
        self.looked = asyncio.Event()  # is set, and replaced, after each look

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Looks are made inside the block."""
        return in_background(self._work())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            if not self.streams:
                continue
            self.begun += 1
            with contextlib.suppress(InputError):  # the store is out of reach for now: the pages stay as they are
                self.queue = await self.look()
                self.done = self.begun
                self.looked.set()
                self.looked = asyncio.Event()

    def is_full(self, person: int) -> bool:
        return self.streams[person] >= MAX_STREAMS

    async def stream(self, person: int, is_shown: Callable[[Waiting], bool]) -> AsyncIterator[str]:
        """Server-sent events: each is {number: text} of the waiting submissions that are shown to that person, when it has changed.

        The first comes after a look that began later than the page was made, so that none is missing in it.
        """
        self.streams[person] += 1
        try:
            first, last, sent = self.begun, None, time.monotonic()
            until = sent + LASTS
            while time.monotonic() < until:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.looked.wait(), QUIET)
                message = json.dumps({each.id: each.text for each in self.queue if is_shown(each)})
                if self.done > first and message != last:
                    last, sent = message, time.monotonic()
                    yield f"data: {message}\n\n"
                elif time.monotonic() - sent > QUIET:
                    sent = time.monotonic()
                    yield ":\n\n"
        finally:
            self.streams[person] -= 1
            if not self.streams[person]:
                del self.streams[person]
