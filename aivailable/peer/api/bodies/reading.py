"""A request's body as a JSON object: read within its limit and its time, then parsed.

Owns the limits of one body; `place` says when a large one is parsed, `absurd` which one is not.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web

from aivailable.errors import RequestError
from aivailable.peer.api.bodies.absurd import refuse_absurd
from aivailable.peer.api.errors import ClientGone
from aivailable.peer.api.parameters import RequestParameters
from aivailable.wire.limits import KIB

BODY_DEADLINE_S = 60.0
"""A client that takes longer to send a body is cut off."""
CLUSTER_BODY_MAX_BYTES = 64 * KIB
"""Of a request that changes the cluster: twice the largest command."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


async def read_body(request: web.Request) -> RequestParameters:
    """The JSON object of a request that describes a change to the cluster, which is small. Raises
    as `read_bytes` and `parsed`."""
    return parsed(await read_bytes(request, CLUSTER_BODY_MAX_BYTES))


async def read_bytes(
    request: web.Request,
    bytes_max: int,
    large_bytes: int = 0,
    on_large: Callable[[], None] | None = None,
) -> bytes:
    """The request's body. `on_large` is called once, as early as it is known that there are more
    than `large_bytes`. Raises RequestError 400, 408, 413 and 415, and what `on_large` raises."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError(415, "unsupported_encoding", "send the body uncompressed")
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    if on_large is not None and (request.content_length or 0) > large_bytes:
        on_large()
        on_large = None
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > bytes_max:
                    raise _too_large(bytes_max)
                if on_large is not None and len(data) > large_bytes:
                    on_large()
                    on_large = None
    except TimeoutError:
        raise RequestError(408, "request_timeout", "the body did not arrive in time") from None
    except ConnectionError as error:
        raise ClientGone from error
    except web.RequestPayloadError as error:
        raise RequestError(400, "invalid_request", f"the body is damaged: {error}") from error
    return bytes(data)


def _too_large(bytes_max: int) -> RequestError:
    return RequestError(
        413, "request_too_large", f"the body is larger than {bytes_max} bytes, which is the limit"
    )


def parsed(data: bytes) -> RequestParameters:
    """The body as a JSON object. Raises RequestError 400."""
    try:
        # Not left to json: of bytes it takes UTF-16, too, and halves of surrogate pairs.
        text = data.decode("utf-8-sig")
        refuse_absurd(data)
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RequestError(
            400, "invalid_json", f"the body is not UTF-8 (at byte {error.start})"
        ) from None
    except RecursionError:
        raise RequestError(400, "invalid_json", "the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if _HALF_CHARACTER.search(text) is not None:
        _refuse_half_characters(value)
    if not isinstance(value, dict):
        raise RequestError(400, "invalid_json", "the body must be a JSON object")
    return RequestParameters(value)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not allowed")


def _refuse_half_characters(value: Any) -> None:
    """JSON can spell one half of a surrogate pair; no encoding of text to bytes can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError(
            400, "invalid_json", "the body contains an unpaired surrogate (\\ud800 … \\udfff)"
        ) from None
