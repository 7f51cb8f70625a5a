"""The server: uvicorn, with this project's manners at a signal and no patience for silent clients."""

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from src.serving.guard import HOST

SILENCE = 10  # seconds in which a client that is connected must have said what it wants


def listen(port: int) -> socket.socket:
    """A socket that only this machine reaches; 0 takes a port that is free.

    Raises:
        OSError: the port is taken, or not ours to take.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(f"port={port} can't be used ({reason}): choose another, or 0 for one that is free") from error


class Server(uvicorn.Server):
    """Serves `app` until it is stopped; the signals are left to who has them."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=SILENCE,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self, number: int = 0) -> None:
        """End within a moment, whoever is being answered; as a signal's handler would be called."""
        logging.getLogger("uvicorn.error").disabled = True  # that somebody is cut off is no error now
        self.should_exit = self.force_exit = True


class Protocol(H11Protocol):
    """Hangs up on who keeps a connection without asking anything."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def _wait(self) -> None:
        last = self.cycle
        self.loop.call_later(SILENCE, lambda: self.timeout_keep_alive_handler() if self.cycle is last else None)
