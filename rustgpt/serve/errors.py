"""Owns what a client is told when its request fails: OpenAI's error objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that is not answered.

    Parameters
    ----------
    status
        Of HTTP.
    message
        For people.
    code
        For programs.
    param
        Which field is wrong.
    headers
        Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """Return the error object."""
        kind = TYPES.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """Return the answer."""
        return json_response(self.content(), self.status, self.headers)


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """Return the error of a field that is wrong."""
    return ApiError(400, message, code, param)


def internal(request_id: str) -> ApiError:
    """Return the error that says nothing of the inside."""
    return ApiError(
        500, f"the server failed; its log tells why beside the request id {request_id}", "internal"
    )


def json_text(content: Any) -> str:
    """Return JSON in ASCII, in which every text can be written."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer of JSON."""
    return Response(json_text(content), status, headers, "application/json")
