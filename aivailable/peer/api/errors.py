"""What a client reads when something is wrong: one shape, one mapping from our error tree.

Owns the JSON error body and the choice of HTTP status; it must not log or count. Called by the
middleware in `server` for errors before the first byte and by the dialects for later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from aivailable.errors import (
    AivailableError,
    GgufError,
    LinkError,
    ProposalError,
    ProposalRejected,
    ProposalUnknown,
    RequestError,
    SchemaError,
)
from aivailable.peer.api.documents import json_answer

UNKNOWN_RETRY_AFTER_S = 2
"""A command whose outcome is unknown is usually visible after one election."""

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES: Mapping[int, str] = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}


class ClientGone(ConnectionResetError):
    """The client's own connection ended, which is told apart from one of ours that broke."""


class ParameterError(RequestError):
    """One parameter of the request is wrong; `param` names it."""

    def __init__(
        self, param: str, message: str, *, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(status, code, message)
        self.param = param


def error_body(error: RequestError, request_id: str) -> dict[str, Any]:
    """OpenAI's error shape, with our request id (DESIGN §8)."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(error.status, kind),
            "code": error.code,
            "param": error.param if isinstance(error, ParameterError) else None,
            "request_id": request_id,
        }
    }


def error_response(error: RequestError, request_id: str) -> web.Response:
    """The whole answer to a request that failed before its first byte."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="aivailable"'
    return json_answer(error_body(error, request_id), status=error.status, headers=headers)


def as_request_error(error: AivailableError | OSError) -> RequestError:
    """The HTTP face of an error of ours. Anything unforeseen stays a 500."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ProposalRejected):
        return RequestError(409, error.code, str(error))
    if isinstance(error, ProposalUnknown):
        return RequestError(
            503,
            "outcome_unknown",
            f"unknown outcome, check status: {error}",
            retry_after_s=UNKNOWN_RETRY_AFTER_S,
        )
    if isinstance(error, ProposalError):
        return RequestError(503, "not_proposed", str(error), retry_after_s=UNKNOWN_RETRY_AFTER_S)
    if isinstance(error, GgufError):
        return RequestError(400, "bad_model_file", str(error))
    if isinstance(error, SchemaError):
        return RequestError(400, "invalid_value", str(error))
    if isinstance(error, OSError):
        return _from_os_error(error)
    if isinstance(error, LinkError):
        return RequestError(502, "link_failed", str(error))
    return RequestError(500, "internal_error", str(error))


def from_http_exception(error: web.HTTPException, method: str, path: str) -> RequestError:
    """aiohttp's own refusals (no such path, wrong method, body too large) in our words."""
    code = _CODES.get(error.status, "http_error")
    if error.status == 404:
        return RequestError(404, code, f"there is no {path} here; GET /openapi.json lists all")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return RequestError(405, code, f"{method} is not possible on {path}; try {allowed}")
    return RequestError(error.status, code, error.text or error.reason)


def _from_os_error(error: OSError) -> RequestError:
    """A path that the client named is its problem (400); a full or broken disk is ours (500)."""
    named = isinstance(
        error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    )
    text = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    return RequestError(
        400 if named else 500, "file_error" if named else "io_error", f"{where}{text}"
    )
