"""The addresses of the course's website. Every page is made here from a template that escapes all values."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse

from config import InputError
from course import leaderboard, points, progress, terms
from course.roster import MAX_NICKNAME, Person, Roster, new_token
from course.schema import MAX_NUMBER
from course.store import Store
from course.submission import FILES, Submission
from course.web import board, uploads
from course.web.guard import HEADERS, Limiter, csrf_of, demand_ours, read_form, refusal
from course.web.live import Live
from limits.assignments import Assignment, Course
from results.guard import Guard

HERE = Path(__file__).parent
READERS = 32  # uploads that are received and checked at a time; the others wait unread
CHECKS = 2  # uploads that are checked at a time, each in a process
MAX_UPLOADS = 12  # of a person
MAX_FAILURES = 20  # of logins, of an address
PERIOD = 600.0  # seconds in which these are the most
HISTORY = 50  # submissions on a student's page
PAGE = 200  # on a page of the teacher's
SESSION, VISIT = "session", "visit"  # cookies: of who is logged in, and of who is not yet

T = TypeVar("T")
Number = Annotated[int, InPath(ge=1, le=MAX_NUMBER)]  # of a submission, in an address; for others there is no page
Before = Annotated[int, Query(ge=1, le=MAX_NUMBER)]
environment = Environment(
    loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def utc(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"


environment.filters["utc"] = utc
environment.filters["processor"] = leaderboard.processor


class Site:
    """What the addresses share.

    Args:
        store: an open one, which stays the caller's.
        origin: https://NAME of a proxy before this server, or "".
        course: the deadline and the like.
        rules: the assignment, or None. It has `course` where it gives points.
        strict: refuse uploads for what is otherwise a warning.
    """

    def __init__(self, store: Store, origin: str, course: Course, rules: Assignment | None, strict: bool) -> None:
        self.store, self.origin, self.course, self.rules, self.strict = store, origin, course, rules, strict
        self.roster = Roster(store)
        self.board = board.Board(store, course.deadline.timestamp() if course.deadline else None, rules.name if rules else "")
        self.live = Live(functools.partial(self._in_thread, self.waiting))
        self.failures = Limiter(MAX_FAILURES, PERIOD)
        self.uploads = Limiter(MAX_UPLOADS, PERIOD)
        self.uploading: set[int] = set()  # people

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers inside the block."""
        self.readers = asyncio.Semaphore(READERS)
        with ThreadPoolExecutor(4) as self.threads, ThreadPoolExecutor(CHECKS) as self.checkers:
            async with self.live.running():
                yield

    async def ask(self, what: Callable[..., T], *arguments: Any) -> T:
        """Something that waits for the store, in a thread. Raises HTTPException (503) where the store does not answer."""
        try:
            return await self._in_thread(what, *arguments)
        except InputError as error:
            if not isinstance(error.__cause__, DBAPIError):
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)  # which is nothing for students
            raise HTTPException(503, "the store does not answer: try again in a minute", {"Retry-After": "60"}) from error

    async def _in_thread(self, what: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, functools.partial(what, *arguments))

    @property
    def shows_results(self) -> bool:
        """Whether students see scores, points and the board."""
        return self.course.visibility == "visible" or (self.course.visibility == "after_due_date" and terms.is_closed(self.course))

    def waiting(self) -> list[progress.Waiting]:
        """The queue as students may see it, with accuracies only where they see results."""
        return progress.waiting(self.store, self.shows_results)

    async def person(self, request: Request) -> Person:
        """Who is logged in. Raises HTTPException, which sends others to the page where they log in."""
        session = request.cookies.get(SESSION)
        person = await self.ask(self.roster.logged_in, session) if session else None
        if person is None:
            raise HTTPException(303, "log in first", {"Location": "/login"})
        return person

    async def teacher(self, request: Request) -> Person:
        person = await self.person(request)
        if not person.is_teacher:
            raise HTTPException(403, "this page is for teachers")
        return person

    async def form(self, request: Request) -> Any:
        """The small form of who is logged in, known for one of ours. Raises HTTPException."""
        form = await read_form(request)
        demand_ours(form, request.cookies.get(SESSION))
        return form

    def page(self, request: Request, template: str, person: Person | None, status: int = 200, **values: Any) -> HTMLResponse:
        cookie = request.cookies.get(SESSION if person else VISIT, "")
        shared = {
            "person": person,
            "csrf": csrf_of(cookie),
            "schedule": terms.schedule(self.course),
            "is_closed": terms.is_closed(self.course),
            "shows_results": self.shows_results,
            "visibility": self.course.visibility,
        }
        return HTMLResponse(environment.get_template(template).render(**(shared | values)), status)

    async def home(self, request: Request, person: Person, problem: str = "", status: int = 200) -> HTMLResponse:
        """A student's page: the assignment, upload, history."""
        mine = await self.ask(self.store.entries, progress.is_of(person.number))
        waiting = {each.id: each.text for each in await self.ask(self.waiting)}
        most = points.most_earned(mine, self.rules)
        return self.page(
            request,
            "home.html.jinja",
            person,
            status,
            problem=problem,
            rules=self.rules,
            terms=list(terms.terms(self.rules)) if self.rules else [],
            demands=terms.demands(self.rules) if self.rules else [],
            points={entry.id: found.text for entry in mine if (found := points.earned_under(entry, self.rules))},
            most=most and f"{most[1].points:g} of {most[1].max_points:g} points, by #{most[0].id}",
            entries=mine[::-1][:HISTORY],
            waiting=waiting,
            files=FILES,
            max_bytes=uploads.MAX_UPLOAD,
            max_nickname=MAX_NICKNAME,
        )

    async def take(self, request: Request, person: Person) -> int:
        """Receive, check and queue an upload; returns its number. Raises HTTPException or InputError."""
        arrived = time.time()  # before it waits for its turn
        if terms.is_closed(self.course):
            raise HTTPException(403, terms.schedule(self.course))
        if person.id in self.uploading:
            raise HTTPException(429, "another upload of yours is being received: wait for it", {"Retry-After": "5"})
        self.uploads.demand(person.id, "uploads")
        self.uploading.add(person.id)
        try:
            async with self.readers:
                form = await read_form(request, uploads.MAX_UPLOAD, files=len(FILES))
                try:
                    demand_ours(form, request.cookies.get(SESSION))
                    self.uploads.note(person.id)
                    sent = [each for each in form.getlist("files") if isinstance(each, UploadFile)]
                    files = [(each.filename, each.file) for each in sent if each.filename]
                    loop = asyncio.get_running_loop()
                    checked = await loop.run_in_executor(self.checkers, uploads.check, files, self.strict)
                finally:
                    await form.close()
        finally:
            self.uploading.discard(person.id)
        return await self.ask(self.add, person, checked, arrived)

    def add(self, person: Person, checked: Submission, arrived: float) -> int:
        """Queue a submission whose contributors are on the roster, the person among them. Raises InputError."""
        numbers = [number for _, number in checked.contributors]
        if person.number not in numbers:
            raise InputError(
                f"your upload is not accepted: you are not among the contributors in submission.json, whose numbers are "
                f"{', '.join(numbers)}; yours is {person.number}"
            )
        if unknown := self.roster.unknown(numbers):
            raise InputError(f"your upload is not accepted: not on the roster of this course: {', '.join(unknown)}")
        number, _ = self.store.add(checked, arrived)
        return number


def make_app(site: Site) -> FastAPI:
    """The website's application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with site.running():
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, headers=HEADERS, refuse=refusal(site.origin))

    def set_cookie(response: Response, name: str, value: str) -> None:
        response.set_cookie(name, value, secure=True, httponly=True, samesite="lax")  # until the browser ends

    @app.get("/login")
    async def login_page(request: Request) -> Response:
        visit = request.cookies.get(VISIT) or new_token()
        response = site.page(request, "login.html.jinja", None, csrf=csrf_of(visit), problem="")
        set_cookie(response, VISIT, visit)
        return response

    @app.post("/login")
    async def login(request: Request) -> Response:
        address = request.client.host if request.client else ""
        site.failures.demand(address, "failed logins from your address")
        form = await read_form(request)
        demand_ours(form, request.cookies.get(VISIT))
        session = await site.ask(site.roster.login, str(form.get("token", "")).strip())
        if session is None:
            site.failures.note(address)
            return site.page(request, "login.html.jinja", None, 403, problem="nobody has this token: copy it whole")
        response = RedirectResponse("/", 303)
        set_cookie(response, SESSION, session)
        response.delete_cookie(VISIT, secure=True, httponly=True, samesite="lax")
        return response

    @app.post("/logout")
    async def logout(request: Request) -> Response:
        await site.form(request)
        await site.ask(site.roster.logout, request.cookies[SESSION])
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION, secure=True, httponly=True, samesite="lax")
        return response

    @app.get("/")
    async def index(request: Request, before: Before = MAX_NUMBER) -> Response:
        person = await site.person(request)
        if not person.is_teacher:
            return await site.home(request, person)
        entries = await site.ask(progress.page, site.store, before, PAGE)
        waiting = {each.id: each.text for each in await site.ask(site.waiting)}
        older = entries[-1].id if len(entries) == PAGE else None
        return site.page(request, "teacher.html.jinja", person, entries=entries, waiting=waiting, older=older)

    @app.post("/upload")
    async def upload(request: Request) -> Response:
        person = await site.person(request)
        if person.is_teacher:
            raise HTTPException(403, "teachers submit with ./run.sh submit")
        try:
            number = await site.take(request, person)
        except InputError as error:
            return await site.home(request, person, str(error), 400)
        return RedirectResponse(f"/#s{number}", 303)

    @app.post("/nickname")
    async def nickname(request: Request) -> Response:
        person = await site.person(request)
        form = await site.form(request)
        try:
            await site.ask(site.roster.set_nickname, person, str(form.get("nickname", "")))
        except InputError as error:
            return await site.home(request, person, str(error), 400)
        return RedirectResponse("/board", 303)

    @app.get("/board")
    async def show_board(request: Request) -> Response:
        person = await site.person(request)
        places = await site.ask(site.board.places) if site.shows_results or person.is_teacher else []
        lines = board.seen_by(person, places, site.course.top, await site.ask(site.roster.people))
        return site.page(
            request,
            "board.html.jinja",
            person,
            lines=lines,
            count=len(places),
            top=site.course.top,
            is_late=terms.is_late(site.course),
        )

    @app.get("/events")
    async def events(request: Request) -> Response:
        person = await site.person(request)
        if site.live.is_full(person.id):
            return Response(status_code=204)  # which tells a browser not to come again
        stream = site.live.stream(person.id, lambda each: person.is_teacher or person.number in each.pennkeys)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @app.get("/submissions/{number}")
    async def details(request: Request, number: Number) -> Response:
        person = await site.teacher(request)
        text = leaderboard.details(await site.ask(site.store.get, number))
        return site.page(request, "details.html.jinja", person, number=number, text=text)

    @app.post("/submissions/{number}/{action}")
    async def act(request: Request, number: Number, action: str) -> Response:
        await site.teacher(request)
        await site.form(request)
        actions = {"cancel": progress.cancel, "again": progress.grade_again}
        if action not in actions:
            raise HTTPException(404, "there is no such page")
        await site.ask(actions[action], site.store, number)
        return RedirectResponse(f"/#s{number}", 303)

    @app.get("/students.csv")
    async def students(request: Request) -> Response:
        await site.teacher(request)
        places, people = await site.ask(site.board.places), await site.ask(site.roster.people)
        text = board.as_csv(places, people, await site.ask(site.store.entries), site.rules)
        return Response(text, media_type="text/csv", headers={"Content-Disposition": 'attachment; filename="students.csv"'})

    @app.get("/site.js")
    async def script() -> Response:
        return FileResponse(HERE / "site.js", media_type="text/javascript")

    @app.get("/site.css")
    async def style() -> Response:
        return FileResponse(HERE / "site.css", media_type="text/css")

    def say(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        page = environment.get_template("message.html.jinja").render(text=text, person=None)
        return HTMLResponse(page, status, headers)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        if error.status_code == 303:
            return RedirectResponse("/login", 303)
        return say(error.detail, error.status_code, error.headers)

    @app.exception_handler(InputError)
    async def explain(request: Request, error: InputError) -> Response:
        return say(str(error), 400)

    @app.exception_handler(RequestValidationError)
    async def refuse_address(request: Request, error: RequestValidationError) -> Response:
        return say("there is no such page", 404)

    @app.exception_handler(ClientDisconnect)
    async def nobody(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # that nobody reads

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        print(f"error: a request failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        return say("the server has made a mistake: tell your teacher what you did", 500, HEADERS)  # made outside the guard

    return app
