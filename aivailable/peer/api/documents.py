"""A JSON document as the answer to a request. Owns nothing but its headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from aivailable.wire.schema import to_json


def json_answer(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Of dataclasses and plain values, as they are."""
    return web.Response(
        body=to_json(value),
        status=status,
        headers=headers,
        content_type="application/json",
        charset="utf-8",
    )
