"""Which keys a node believes when it has not heard of the cluster for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aivailable.core.ids import key_hash, key_id
from aivailable.core.state.records import ApiKey, Scope
from aivailable.peer.local_service import ADMIN_KEYS_CUT_OFF_MAX_S, LocalApiKeys

OWN, OTHER = "aiv-own", "aiv-other"
LIMIT_MS = ADMIN_KEYS_CUT_OFF_MAX_S * 1000


def admin(text: str) -> ApiKey:
    hashed = key_hash(text)
    return ApiKey(key_id(hashed), hashed, Scope.ADMIN, text)


@pytest.mark.parametrize(
    ("leaderless_ms", "believed"), [(0, True), (LIMIT_MS - 1, True), (LIMIT_MS, False)]
)
def test_a_node_that_is_cut_off_for_a_day_believes_only_its_own_admin_key(
    leaderless_ms: int, believed: bool
) -> None:
    current: Any = SimpleNamespace(
        session=SimpleNamespace(leaderless_ms=lambda: leaderless_ms), state=None
    )
    ports: Any = None
    changes: Any = None
    keys = LocalApiKeys(ports, OWN, current, changes)
    assert keys.believed(admin(OTHER)) is believed
    assert keys.believed(admin(OWN))
    current.session = None
    assert keys.believed(admin(OTHER))
