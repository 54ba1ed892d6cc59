"""Trained weights behind a page and an interface for programs, both on this machine alone: `./run.sh serve`."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import python_multipart  # noqa: F401 (fastapi asks for it only at the first upload)
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from config import InputError
from learning.inference import TrainedNetwork
from results.explaining import Explainer
from results.guard import Guard, name_of
from results.listening import HOST, listen
from results.report import render
from results.service import MAX_BODY, Service

NAMES = (HOST, "localhost")
"""What browsers may call this machine. Another name is that of a web page whose name server has turned to 127.0.0.1."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HERE = Path(__file__).parent


def refusal(host: str, origin: str | None) -> JSONResponse | None:
    """For `Guard`. A page from anywhere can make a browser send requests to 127.0.0.1. It cannot hide where it is from: `Origin`
    names its address, and `Host` the name that it has given to 127.0.0.1 (DNS rebinding)."""
    if name_of(host) not in NAMES:
        return JSONResponse({"error": f"this server is only for {HOST} and localhost"}, 403)
    if origin is not None and origin != f"http://{host}":
        return JSONResponse({"error": "requests of other web pages are refused"}, 403)
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
    app.add_middleware(Guard, headers=HEADERS, refuse=refusal)

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
