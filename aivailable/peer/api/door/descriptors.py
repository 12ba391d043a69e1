"""How many descriptors the process may open, and how many of them are the API's connections."""

from __future__ import annotations

import resource

DESCRIPTORS_MAX = 1 << 20
"""What a limit without end is read as; more is of no use and costs memory in some kernels."""
DESCRIPTORS_KEPT = 320
"""Not for API connections: links, logs, pipes of workers, models that are copied, mDNS."""
CONNECTIONS_MAX = 4096
"""API connections at once, however many descriptors there are."""


def raise_limit() -> int:
    """Lifts the soft limit to the hard one. Returns the soft limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def limit() -> int:
    """The soft limit of now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft


def connections_max(descriptors: int) -> int:
    """How many API connections there may be when the process can open `descriptors` files. The rest
    is kept for links and workers."""
    return max(1, min(CONNECTIONS_MAX, max(descriptors - DESCRIPTORS_KEPT, descriptors // 2)))
