"""What this node's API counts of the requests that end here.

Owns the counts and the limits on their labels; it must not do I/O. `accounting` counts,
`exposition` shows the numbers to Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.core.serving.histogram import WAIT_BOUNDS_S, Histogram
from aivailable.core.state.records import ApiKey

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DEPLOYMENTS_MAX = 100
"""Deployments with series of their own, since this process started; further ones share OTHER."""
KEYS_MAX = 100
"""API keys with series of their own, since this process started; further ones share OTHER."""
OTHER = "other"
NO_KEY = "none"
"""Requests without a key: from this machine, or where no key is needed."""


class Labels:
    """The first `most` values of a label keep their name; every later one is OTHER."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, None] = {}

    def of(self, value: str) -> str:
        """The value to show. It stays the same for as long as the process lives."""
        if value not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known[value] = None
        return value


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that has ended. `route` is a path template."""

    route: str
    outcome: str
    deployment: str
    """"" when the request was for no deployment that exists."""
    key: ApiKey | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float | None
    routed_s: float | None
    """Until a replica took it (the last one, when there were several); None: none did."""


@dataclass(slots=True)
class KeyUse:
    """What one API key has used at this node. `label` is what its owner is called."""

    label: str = ""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Metrics:
    """Counts since this process started. Labels are bounded: routes, outcomes, and the first so
    many deployments and keys."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests: dict[tuple[str, str], int] = {}
        """By route and outcome."""
        self.deployments = Labels(DEPLOYMENTS_MAX)
        self.by_deployment: dict[tuple[str, str], int] = {}
        """By deployment and outcome."""
        self.keys: dict[str, KeyUse] = {}
        """By key id, never by a key's text."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.first_token = Histogram(TTFT_BUCKETS_S)
        self.routing_waits = Histogram(WAIT_BOUNDS_S)
        self._key_labels = Labels(KEYS_MAX)

    def request_ended(self, ended: Ended) -> None:
        """Called exactly once for each request."""
        _count(self.requests, (ended.route, ended.outcome))
        if ended.deployment:
            deployment = self.deployments.of(ended.deployment)
            _count(self.by_deployment, (deployment, ended.outcome))
        self._count_key(ended)
        self.prompt_tokens += ended.prompt_tokens
        self.cached_tokens += ended.cached_tokens
        self.completion_tokens += ended.completion_tokens
        if ended.first_token_s is not None:
            self.first_token.observe(ended.first_token_s)
        if ended.routed_s is not None:
            self.routing_waits.observe(ended.routed_s)

    def outcomes(self) -> dict[str, int]:
        """Requests that have ended, by outcome."""
        totals: dict[str, int] = {}
        for (_, outcome), count in self.requests.items():
            totals[outcome] = totals.get(outcome, 0) + count
        return totals

    def _count_key(self, ended: Ended) -> None:
        name, label = NO_KEY, ""
        if ended.key is not None:
            name = self._key_labels.of(ended.key.key_id)
            label = ended.key.label if name != OTHER else ""
        use = self.keys.setdefault(name, KeyUse(label))
        use.requests += 1
        use.prompt_tokens += ended.prompt_tokens
        use.completion_tokens += ended.completion_tokens


def _count(counts: dict[tuple[str, str], int], key: tuple[str, str]) -> None:
    counts[key] = counts.get(key, 0) + 1
