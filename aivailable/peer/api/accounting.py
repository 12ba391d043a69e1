"""One request's record: how it went, counted once and logged once.

Owns `RequestRecord` and the end of it; it must not touch sockets. The middleware in `server` opens
and ends a record, `auth` and the dialects fill it in.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

from aiohttp import web

from aivailable.core.ids import AccountId, short
from aivailable.core.state.records import ApiKey
from aivailable.peer.api.monitoring.metrics import Ended, Metrics
from aivailable.peer.service import Routing

log = logging.getLogger("aivailable.requests")


class RequestOutcome(enum.StrEnum):
    """How a request ends: in exactly one of these."""

    DONE = "done"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(slots=True)
class RequestRecord:
    """`route` is a path template, never what the client typed: metrics stay bounded."""

    request_id: str
    method: str
    route: str
    started_s: float
    key: ApiKey | None = None
    account: AccountId = ""
    """Whom fairness counts this request for; `auth` alone sets it."""
    admin: bool = False
    model: str = ""
    routing: Routing | None = None
    prompt_tokens: int = 0
    """Each prompt once, however many choices were made of it."""
    cached_tokens: int = 0
    """Of them not computed anew."""
    completion_tokens: int = 0
    """All choices together."""
    ignored: tuple[str, ...] = ()
    """Parameters that had no effect, as the client may be told."""
    first_token_s: float | None = None
    """Seconds from the request's arrival to its first token."""
    outcome: RequestOutcome | None = None

    @property
    def actor(self) -> str:
        """Who a command is recorded for."""
        return f"operator:{self.key.key_id}" if self.key is not None else "operator:local"

    def headers(self) -> dict[str, str]:
        """What the client learns of the way its request went; ids are short."""
        headers = {"X-AIvailable-Request": self.request_id}
        if self.ignored:
            headers["X-AIvailable-Ignored"] = ", ".join(self.ignored)
        if self.routing is not None:
            headers["X-AIvailable-Ingress"] = short(self.routing.ingress)
            headers["X-AIvailable-Attempts"] = str(self.routing.attempts)
            headers["X-AIvailable-Queue-Ms"] = str(self.routing.queue_ms)
            if self.routing.host:
                headers["X-AIvailable-Host"] = short(self.routing.host)
                headers["X-AIvailable-Replica"] = self.routing.replica
        return headers


def outcome_of(status: int) -> RequestOutcome:
    """The outcome that an HTTP status stands for. 503 means: not now, and nothing broke."""
    if status < 400:
        return RequestOutcome.DONE
    return RequestOutcome.REFUSED if status < 500 or status == 503 else RequestOutcome.FAILED


_RECORD = web.RequestKey("call", RequestRecord)


def attach(request: web.Request, record: RequestRecord) -> None:
    request[_RECORD] = record


def record_of(request: web.Request) -> RequestRecord:
    """The record that the middleware opened for this request."""
    return request[_RECORD]


def end(
    record: RequestRecord, outcome: RequestOutcome, status: int, now_s: float, metrics: Metrics
) -> None:
    """Count and log. A dialect that knows better than the status has set `record.outcome`."""
    record.outcome = record.outcome or outcome
    routing = record.routing
    metrics.request_ended(
        Ended(
            route=record.route,
            outcome=record.outcome.value,
            deployment=record.model,
            key=record.key,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            completion_tokens=record.completion_tokens,
            first_token_s=record.first_token_s,
            routed_s=routing.queue_ms / 1000 if routing is not None and routing.attempts else None,
        )
    )
    log.info(
        "id=%s key=%s route=%s %s model=%s host=%s replica=%s attempts=%d tokens=%d+%d "
        "queue_ms=%d ms=%d status=%d outcome=%s",
        record.request_id,
        record.key.key_id if record.key is not None else "-",
        record.method,
        record.route,
        record.model or "-",
        (short(routing.host) if routing is not None else "") or "-",
        (routing.replica if routing is not None else "") or "-",
        routing.attempts if routing is not None else 0,
        record.prompt_tokens,
        record.completion_tokens,
        routing.queue_ms if routing is not None else 0,
        round((now_s - record.started_s) * 1000),
        status,
        record.outcome.value,
    )
