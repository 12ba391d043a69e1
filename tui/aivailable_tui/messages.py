"""What the follower tells the screen. Small, and a newer one replaces an older one still queued,
so that a slow terminal shows the present instead of catching up with the past."""

from __future__ import annotations

from textual.message import Message

from aivailable.core.serving.status import ClusterStatus


class StatusArrived(Message):
    """A node said how the cluster is."""

    def __init__(self, status: ClusterStatus) -> None:
        super().__init__()
        self.status = status

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, StatusArrived)


class SightLost(Message):
    """No node answers now; `reason` says what the last try met."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, SightLost)
