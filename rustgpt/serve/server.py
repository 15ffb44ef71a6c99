"""Owns the server's life: socket, connections, the loading of the model, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rustgpt.errors import RustGPTError
from rustgpt.llm import LLM
from rustgpt.serve.app import make_app
from rustgpt.serve.config import Limits, ServeConfig
from rustgpt.serve.errors import ApiError, json_text
from rustgpt.serve.security import HEADERS, log_line
from rustgpt.serve.service import Service

KEEP_ALIVE: Final = 5  # seconds that a connection may be idle
SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)
)


class ModelServer:
    """A model behind HTTP. It listens from the beginning; `run` answers.

    Parameters
    ----------
    name
        What the model is called, unless the settings say otherwise.
    load
        Returns the model; until then the server says that it is loading.
    config
        How it is served.
    say
        Is told what a person should know.
    log
        Is told of each request.

    Attributes
    ----------
    port
        Where it listens.

    Raises
    ------
    RustGPTError
        If the address cannot be listened at.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], LLM],
        config: ServeConfig | None = None,
        say: Callable[[str], None] = lambda text: None,
        log: Callable[[str], None] = log_line,
    ) -> None:
        self.config = config or ServeConfig()
        self.service = Service(self.config, name, load)
        self._say = say
        self._listener = listen(self.config.host, self.config.port)
        self.port: int = self._listener.getsockname()[1]
        app = make_app(self.service, self.port, log)
        self._server = Server(_uvicorn_config(app, self.config.limits))
        self.service.connections = lambda: len(self._server.server_state.connections)

    def run(self) -> int:
        """Answer requests until a signal comes, or `stop`; return the exit status.

        Raises
        ------
        RustGPTError
            If the model cannot be loaded.
        """
        with contextlib.closing(self._listener):
            return asyncio.run(self._run())

    def stop(self) -> None:
        """End, when running requests have ended; any thread may call it."""
        self._server.should_exit = True

    async def _run(self) -> int:
        service = self.service
        service.created = int(time.time())
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        address = f"http://{host}:{self.port}"
        self._say(f"loading {service.name}; {address}/health tells when it is ready")
        loading = asyncio.create_task(service.start())

        def loaded(task: asyncio.Task[None]) -> None:
            if task.cancelled() or task.exception() is not None:
                self.stop()
                return
            texts = f"texts at once: {service.worker.slots}, waiting: {self.config.limits.queued}"
            self._say(f"{service.name} is ready at {address} ({texts})")

        loading.add_done_callback(loaded)
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            loading.cancel()  # the thread that loads ends with the process
            await asyncio.wait([loading])
            await asyncio.to_thread(service.stop)
        if not loading.cancelled():
            loading.result()
        return self._server.status


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; RustGPTError if that is not possible."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise RustGPTError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; choose another with "
            "--host or --port"
        ) from None
    return listener


def _uvicorn_config(app: Any, limits: Limits) -> uvicorn.Config:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # the guard has a log
    return uvicorn.Config(
        app,
        http=protocol_for(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(limits.drain_seconds),
    )


class Server(uvicorn.Server):
    """A server that a signal asks to end: what runs is finished, and nothing is raised.

    Attributes
    ----------
    status
        The exit status that the signal asks for.
    """

    status = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed signals, and leave them afterwards as they were."""
        before = {}
        with contextlib.suppress(ValueError):  # not the main thread
            before = {number: signal.signal(number, self._heed) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heed(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            self.status = 130
            self.force_exit = self.should_exit  # the second time
        self.should_exit = True


class Connection(H11Protocol):
    """uvicorn's protocol of a connection, with limits of time and number."""

    limits: Limits
    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is awaited
    _stalled_timer: asyncio.TimerHandle | None = None  # runs while the client reads nothing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections are open: try again later")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stalled_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._stop_head_timer()
        self._refuse(400, "this is no valid HTTP request")

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self.limits.stalled_seconds
        self._stalled_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stalled_timer()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._late)

    def _late(self) -> None:
        self._head_timer = None
        self._refuse(408, "the head of the request took too long")

    def _refuse(self, status: int, message: str) -> None:
        self.transport.write(_refusal(status, message))
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stalled_timer(self) -> None:
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None


def protocol_for(limits: Limits) -> type[Connection]:
    """Return the protocol of connections with these limits; uvicorn makes them of a class."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


def _refusal(status: int, message: str) -> bytes:
    """Return a whole answer, of a connection that ends with it."""
    body = json_text(ApiError(status, message).content()).encode()
    lines = [
        f"HTTP/1.1 {status} Refused",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(["Retry-After: 5"] if status == 503 else []),
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
