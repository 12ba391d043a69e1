"""Counters of this node's API and the text that Prometheus reads.

Owns the numbers and the exposition format (Prometheus text 0.0.4, prometheus.io "Exposition
formats"); it must not do I/O. `accounting` counts, `health` serves the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aivailable import __version__
from aivailable.core.status import ClusterStatus

TTFT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = Sequence[tuple[str, str]]


class Metrics:
    """Counts since this process started. Labels are bounded: routes and outcomes only."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._requests: dict[tuple[str, str], int] = {}
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0
        self._ttft_counts = [0] * (len(TTFT_BUCKETS_S) + 1)
        self._ttft_sum_s = 0.0

    def request_ended(
        self,
        route: str,
        outcome: str,
        prompt_tokens: int,
        cached_tokens: int,
        completion_tokens: int,
        first_token_s: float | None,
    ) -> None:
        """Called exactly once for each request."""
        key = (route, outcome)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._prompt_tokens += prompt_tokens
        self._cached_tokens += cached_tokens
        self._completion_tokens += completion_tokens
        if first_token_s is not None:
            self._ttft_sum_s += first_token_s
            slot = sum(first_token_s > bound for bound in TTFT_BUCKETS_S)
            self._ttft_counts[slot] += 1

    def outcomes(self) -> dict[str, int]:
        """Requests that have ended, by outcome."""
        totals: dict[str, int] = {}
        for (_, outcome), count in self._requests.items():
            totals[outcome] = totals.get(outcome, 0) + count
        return totals

    def text(self, status: ClusterStatus) -> str:
        """The whole page: what was counted here and what the cluster looks like from here."""
        replicas: dict[str, int] = {}
        for replica in status.replicas:
            replicas[replica.status] = replicas.get(replica.status, 0) + 1
        requests = [
            ((("route", route), ("outcome", outcome)), count)
            for (route, outcome), count in sorted(self._requests.items())
        ]
        own = [replica for replica in status.replicas if replica.node == status.here]
        drafted = sum(replica.drafted_tokens for replica in own)
        accepted = sum(replica.accepted_tokens for replica in own)
        lines = [
            *_family("build_info", "gauge", [((("version", __version__),), 1)]),
            *_family("up", "gauge", [((), 1)]),
            *_family("quorum", "gauge", [((), int(status.quorum))]),
            *_family("members", "gauge", [((), len(status.nodes))]),
            *_family("voters", "gauge", [((), len(status.voters))]),
            *_family("applied_version", "gauge", [((), status.version)]),
            *_family(
                "replicas",
                "gauge",
                [((("status", name),), count) for name, count in sorted(replicas.items())],
            ),
            *_family("requests_in_flight", "gauge", [((), self.in_flight)]),
            *_family("requests_total", "counter", requests),
            *_family("prompt_tokens_total", "counter", [((), self._prompt_tokens)]),
            *_family("cached_prompt_tokens_total", "counter", [((), self._cached_tokens)]),
            *_family("completion_tokens_total", "counter", [((), self._completion_tokens)]),
            *_family("drafted_tokens_total", "counter", [((), drafted)]),
            *_family("accepted_draft_tokens_total", "counter", [((), accepted)]),
            *self._ttft_lines(),
        ]
        return "\n".join(lines) + "\n"

    def _ttft_lines(self) -> Iterable[str]:
        name = "aivailable_time_to_first_token_seconds"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*TTFT_BUCKETS_S, "+Inf"), self._ttft_counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._ttft_sum_s:.6f}"
        yield f"{name}_count {total}"


def _family(name: str, kind: str, samples: Sequence[tuple[Labels, int]]) -> Iterable[str]:
    yield f"# TYPE aivailable_{name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        yield f"aivailable_{name}{{{inner}}} {value}" if inner else f"aivailable_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
