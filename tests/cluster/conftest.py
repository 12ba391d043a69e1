"""Real peers on the loopback interface, for each test anew."""

from __future__ import annotations

from fixtures.loopback_lab import homes, peers, three

__all__ = ["homes", "peers", "three"]
