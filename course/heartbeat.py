"""While a submission runs, its grader tells the store that it lives, and hears whether the submission is still its own."""

from __future__ import annotations

import contextlib
import threading

from config import InputError
from course.store import Store

POLL = 1.0  # seconds between two looks at the store


class Heartbeat(threading.Thread):
    """A thread of its own, since the exam's clock must not wait for a database that is slow or out of reach.

    A context manager; `lost` is set once the submission was cancelled or taken away. `progress` is what it tells of the run.
    """

    def __init__(self, store: Store, number: int) -> None:
        super().__init__(daemon=True)
        self.store, self.number = store, number
        self.progress = ""
        self.lost, self.ended = threading.Event(), threading.Event()

    def run(self) -> None:
        told = ""
        while not self.ended.wait(POLL):
            progress = self.progress
            with contextlib.suppress(
                InputError
            ):  # out of reach: the next beat may come through, or `Store.finish` says what is wrong
                if not self.store.keep(self.number, None if progress == told else progress):
                    self.lost.set()
                    return
                told = progress

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
