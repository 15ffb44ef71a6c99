"""Owns the border of the server: who may ask, from which page, with which head; and its log."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rustgpt.serve.config import ServeConfig
from rustgpt.serve.errors import ApiError, internal
from rustgpt.serve.metrics import Metrics

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Origin",
}
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
NOTICE: Final = "X-RustGPT-Notice"  # what was done otherwise than asked


class Guard:
    """Stands before the application: checks heads, adds headers, turns failures into answers.

    Parameters
    ----------
    app
        The application.
    config
        Who may ask.
    port
        Where the server listens.
    metrics
        Counts requests.
    paths
        Those of the application, by which requests are counted.
    open_paths
        Those that need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        port: int,
        metrics: Metrics,
        paths: Collection[str],
        open_paths: Collection[str],
        log: Callable[[str], None],
    ) -> None:
        self._app = app
        self._config = config
        self._metrics = metrics
        self._paths = paths
        self._open_paths = open_paths
        self._log = log
        self._hosts = {f"{name}:{port}" for name in (*LOCAL_NAMES, _bracketed(config.host))}
        if port == 80:
            self._hosts |= {*LOCAL_NAMES}
        self._hosts |= {name.lower() for name in config.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._config, scope, send)
        scope["request_id"], scope["app"] = exchange.id, self  # so that the router raises
        try:
            response = self._checked(scope, Headers(scope=scope))
            await (response or self._app)(scope, receive, exchange.send)
        except ApiError as error:
            await exchange.answer(error, scope, receive)
        except HTTPException as error:
            what = "nothing is at this address" if error.status_code == 404 else error.detail
            refused = ApiError(error.status_code, what, headers=error.headers)
            await exchange.answer(refused, scope, receive)
        except ClientDisconnect:  # before all of the request was there
            pass
        except Exception:
            self._log(f"{exchange.id} failed\n{traceback.format_exc().rstrip()}")
            await exchange.answer(internal(exchange.id), scope, receive)
        finally:
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = time.monotonic() - exchange.began
        path = scope["path"] if scope["path"] in self._paths else "other"
        status = exchange.status or 499  # the client has left
        self._metrics.requests[path, status] += 1
        self._metrics.seconds.observe(seconds)
        client = scope.get("client") or ("-",)
        what = f"{scope['method']} {scope['path']}"[:200]
        self._log(f"{exchange.id} {client[0]} {what} {status} {seconds * 1000:.0f} ms")

    def _checked(self, scope: Scope, headers: Headers) -> Response | None:
        """Return an answer, if there is one before any work; ApiError if the head is refused."""
        self._check_size(scope)
        self._check_host(headers)
        origin = self._check_origin(headers)
        if scope["method"] == "OPTIONS" and origin:
            return Response(status_code=204, headers=_PREFLIGHT)
        self._check_key(scope["path"], headers)
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "the Content-Type must be application/json")
        return None

    def _check_size(self, scope: Scope) -> None:
        limits, lines = self._config.limits, scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in lines)
        if len(lines) > limits.head_lines or size > limits.head_bytes:
            raise ApiError(
                431,
                f"the head of the request is too large: at most {limits.head_lines} lines and "
                f"{limits.head_bytes} bytes are accepted",
            )

    def _check_host(self, headers: Headers) -> None:
        found = headers.getlist("host")
        if len(found) != 1 or not found[0]:
            raise ApiError(400, "the request must have one Host header")
        host = found[0].lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if host not in self._hosts and name not in self._config_hosts:
            raise ApiError(403, "this Host is not served here (--allow-host names others)")

    @property
    def _config_hosts(self) -> Iterable[str]:
        return [name.lower() for name in self._config.hosts if ":" not in name]

    def _check_origin(self, headers: Headers) -> str:
        """Return the origin of another server's page that may use this one; "" for our own."""
        origins = headers.getlist("origin")
        host = headers["host"].lower()
        ours = (f"http://{host}", f"https://{host}")
        if not origins or (len(origins) == 1 and origins[0].lower() in ours):
            navigates = headers.get("sec-fetch-mode") == "navigate"
            if headers.get("sec-fetch-site") == "cross-site" and (origins or not navigates):
                raise ApiError(403, "requests from pages of other servers are refused")
            return ""
        if len(origins) == 1 and origins[0] in self._config.origins:
            return origins[0]
        raise ApiError(
            403,
            "pages of this Origin may not use the server (its option --allow-origin names some)",
        )

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._config.key or path in self._open_paths:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = self._config.key.encode()
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected)
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                401,
                "the key is missing or wrong: send it as 'Authorization: Bearer KEY'",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _Exchange:
    """A request and its answer, to whose headers the safe ones are added."""

    def __init__(self, config: ServeConfig, scope: Scope, send: Send) -> None:
        self.id = secrets.token_hex(8)
        self.began = time.monotonic()
        self.status = 0
        self._is_complete = False
        self._send = send
        origin = Headers(scope=scope).get("origin", "")
        self._origin = origin if origin in config.origins else ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers["X-Request-ID"] = self.id
            headers.setdefault("Cache-Control", "no-store")
            if self._origin:
                headers["Access-Control-Allow-Origin"] = self._origin
                headers["Access-Control-Expose-Headers"] = f"X-Request-ID, {NOTICE}, Retry-After"
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        await self._send(message)
        if message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)

    async def answer(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answer with an error; if another answer has begun and not ended, cut the connection."""
        if self._is_complete:
            return
        if self.status:
            raise ConnectionAbortedError("the answer had begun")
        await error.response()(scope, receive, self.send)


_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def escaped(text: str) -> str:
    """Return a line for the log, in which nothing can steer a terminal or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def log_line(text: str) -> None:
    """Write a line, or a traceback's lines, to standard error."""
    lines = "\n".join(map(escaped, text.splitlines()))
    if sys.stderr is not None:
        with contextlib.suppress(OSError, UnicodeError):
            print(f"rustgpt: {lines}", file=sys.stderr, flush=True)
