"""Who may ask, how long it may take, and what browsers may do with an answer."""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
SECONDS = 30  # for a request to come, be answered and be read
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # the same address may be of another index tomorrow
}


class Guard:
    """An application for the browser of this machine alone, without what other pages in it would like to ask.

    A page whose own name leads to this machine (DNS rebinding) is known by the `Host` that its requests have, one
    that posts here from elsewhere by its `Origin`, and one that takes images from here by its `Sec-Fetch-Site`.

    Args:
        app: what is guarded.
        port: the one it listens at.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        names = (HOST, "localhost")
        self.hosts = {f"{name}:{port}" for name in names} | ({*names} if port == 80 else set())
        self.home = f"http://{HOST}:{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if not self._is_ours(Headers(scope=scope)):
            refusal = JSONResponse({"detail": f"only the page at {self.home} is answered"}, 403)
            await refusal(scope, receive, answer)
            return
        try:
            async with asyncio.timeout(SECONDS):
                await self.app(scope, receive, answer)
        except TimeoutError:
            if not started:
                slow = JSONResponse(
                    {"detail": f"this took longer than {SECONDS} seconds"}, 408, {"Connection": "close"}
                )
                await slow(scope, receive, answer)

    def _is_ours(self, headers: Headers) -> bool:
        """Whether a request is to this machine by its own name, and from no other page."""
        origin = headers.get("origin")
        part_of_another = headers.get("sec-fetch-site") in ("cross-site", "same-site")  # who follows a link is welcome
        return (
            headers.get("host", "").lower() in self.hosts
            and (origin is None or origin.removeprefix("http://") in self.hosts)
            and not (part_of_another and headers.get("sec-fetch-mode") != "navigate")
        )
