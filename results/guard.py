"""What every request to a server of this project passes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

Scope = MutableMapping[str, Any]
App = Any  # of ASGI


class Guard:
    """Refuses what another website has had a browser send, and adds `headers` to every answer.

    `refuse(host, origin)` gives the answer to a request that is refused, and None for any other.
    """

    def __init__(self, app: App, headers: Mapping[str, str], refuse: Callable[[str, str | None], App | None]) -> None:
        self.app, self.headers, self.refuse = app, headers, refuse

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        asked = Headers(scope=scope)
        refusal = self.refuse(asked.get("host", ""), asked.get("origin"))
        await (refusal or self.app)(scope, receive, send_with_headers)


def name_of(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
