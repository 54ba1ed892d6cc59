"""The process of `./run.sh course serve`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from multiprocessing import forkserver
from urllib.parse import urlsplit

import python_multipart  # noqa: F401 (fastapi asks for it only at the first form)
import uvicorn

from config import InputError
from course.store import Store
from course.web.app import Site, make_app
from course.web.guard import LOOPBACK
from limits.assignments import Assignment, Course
from results.listening import listen
from utils import ROOT

MAX_CONNECTIONS = 2000  # more are told to come again
KEEP_ALIVE = 75  # seconds of an idle connection: who ends one first must be the client, or its next request may meet the end


def serve(place: str, host: str, port: int, origin: str, course: Course, rules: Assignment | None, strict: bool) -> int:
    """Answer until Ctrl-C. Raises InputError where the port or the store cannot be had."""
    parts = urlsplit(origin)
    if origin and (parts.scheme != "https" or not parts.hostname or origin != f"https://{parts.netloc}"):
        raise InputError(f"--origin is {origin}: write it as https://NAME, without anything behind it")
    if host not in LOOPBACK and not origin:
        raise InputError(
            f"--host {host} is open to others, who would send their tokens unencrypted: put a proxy with TLS before this server "
            "and pass its address as --origin https://NAME"
        )
    # Each check is a process forked from one that has imported what it needs, main.py included, which all such processes run.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # by which it finds that
    multiprocessing.get_context("forkserver").set_forkserver_preload(["main", "course.submission"])
    forkserver.ensure_running()
    with Store(place) as store, listen(port, host) as listener:
        config = uvicorn.Config(
            make_app(Site(store, origin, course, rules, strict)),
            lifespan="on",
            log_config=None,
            log_level="critical",  # what fails is said by the application, in a line
            access_log=False,  # of who came when nothing is kept
            server_header=False,
            proxy_headers=bool(origin),  # of a proxy on this machine, or on one that $FORWARDED_ALLOW_IPS names
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,  # the streams of open pages would last for minutes
        )
        name = f"[{host}]" if ":" in host else host
        print(f"serving {store.database.name} on http://{name}:{listener.getsockname()[1]}/ until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    return 0
