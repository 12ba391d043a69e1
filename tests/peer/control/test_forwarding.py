"""What the leader takes from whom: operators' wishes from all, news of oneself, and no plans."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.states import device, equipped, inventory

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import (
    Command,
    Drain,
    MarkDown,
    Remove,
    ReportInventory,
    SayAway,
    SetRole,
    SetWindow,
    TakeControl,
)
from aivailable.core.state.records import Role
from aivailable.peer.control.forwarding import may_forward

STATE = equipped(3).state


def asked(body: Any, node: str = "n2", proposer: str = "n2") -> bool:
    command = Command(CommandId(proposer, 1), body, "operator:k")
    return may_forward(STATE, node, encode_command(command))


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        (SetWindow(0), True),
        (Remove("n3"), True),
        (SayAway("n2"), True),
        (SayAway("n3"), False),
        (ReportInventory(inventory("n2", device())), True),
        (ReportInventory(inventory("n3", device())), False),
        (TakeControl("n2", 2**62), False),
        (TakeControl("n2", 2), False),
        (SetRole("n2", Role.VOTER), False),
        (MarkDown("n3", True), False),
        (Drain("x#1.1"), False),
    ],
)
def test_what_a_member_may_have_put_into_the_log(body: Any, allowed: bool) -> None:
    assert asked(body) is allowed
    assert not asked(body, proposer="n3"), "nobody speaks for another"


def test_what_is_no_command_is_refused() -> None:
    assert not may_forward(STATE, "n2", b"junk")
