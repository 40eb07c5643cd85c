"""What is asked of every request before anything answers it: from this site, small, and signed where one signs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OURS: Final = "/veca/"
"""Below it lie our routes."""
PUBLIC: Final = "/veca/asset/"
"""The page's own program: the same for everybody, and known to the world."""
UPLOADS: Final = "/_stcore/upload_file"
LARGEST: Final = 2**20
"""Bytes of a request's body: nothing that the page sends is larger."""
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "SAMEORIGIN",
}


class Guard:
    """Middleware that turns away what the page itself would not send."""

    def __init__(self, app: ASGIApp, signed_in: Callable[[str], bool] | None) -> None:
        """`signed_in` checks a pass; None where nobody has to sign in."""
        self.app = app
        self.signed_in = signed_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refuse(scope)
        if refused is not None:
            await PlainTextResponse(refused[1], refused[0], headers=HEADERS)(scope, receive, send)
            return
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST:
                return {"type": "http.disconnect"}
            return message

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, bounded, stamped)

    def _refuse(self, scope: Scope) -> tuple[int, str] | None:
        """(status, reason) of a request that is turned away."""
        headers, path = Headers(scope=scope), scope["path"]
        if path.startswith(UPLOADS):
            return 403, "this page takes no uploads"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST:
            return 413, f"a request may hold {LARGEST} bytes"
        if _comes_from_elsewhere(headers, path):
            return 403, "this page answers its own site only"
        if self.signed_in is not None and path.startswith(OURS) and not path.startswith(PUBLIC):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("pass", [""])
            if not self.signed_in(given[0]):
                return 401, "sign in on the page"
        return None


def _comes_from_elsewhere(headers: Headers, path: str) -> bool:
    """Whether another site's page sent it; one may open the page itself by a link."""
    site = headers.get("sec-fetch-site", "none")
    opened = headers.get("sec-fetch-mode") == "navigate" and not path.startswith(OURS)
    # After signing in elsewhere, the browser comes back with a navigation, which is allowed.
    if site not in ("same-origin", "none") and not opened:
        return True
    origin = headers.get("origin")
    return origin is not None and not opened and urlsplit(origin).netloc != headers.get("host")
