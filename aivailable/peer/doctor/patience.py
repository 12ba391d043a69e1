"""Asks again while an answer may only be that of a node that has just started.

A node that is founding has no offer yet. A member that came back does not know the join window or
the leader until the others have spoken. Some seconds later the same question gets another answer,
so these are no findings. Owns how long doctor waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable.peer.doctor.findings import NodeFinding, Own, ProbeTarget
from aivailable.peer.doctor.network import reach
from aivailable.peer.doctor.verdicts_nodes import may_change, tells_all

NEWS_WAIT_S: Final = 5.0
"""For one node, from its first try: a seeker founds, and a member that came back hears the others,
within this time (`core.state.founding`, `peer.joining.window`)."""
ASK_AGAIN_S: Final = 0.5
ASK_OWN_LIMIT_S: Final = 3.0

AskOwn = Callable[[], Awaitable[ClusterStatus | None]]
"""Asks the node that runs from our home; None while home names none. Raises AivailableError."""


AskStall = Callable[[], Awaitable[float | None]]
"""Asks it how long its event loop stood still at most, lately. Raises AivailableError."""

OwnAnswer = tuple[ClusterStatus | None, str]
"""Our node's status; without one, why there is none, in words, if anybody was asked."""


async def ask_own_node(ask: AskOwn | None) -> OwnAnswer:
    """Once, within ASK_OWN_LIMIT_S."""
    if ask is None:
        return None, ""
    try:
        async with asyncio.timeout(ASK_OWN_LIMIT_S):
            return await ask(), ""
    except TimeoutError:
        return None, f"its API gave no answer in {ASK_OWN_LIMIT_S:g} s"
    except AivailableError as error:
        return None, str(error)


async def ask_own_stall(ask: AskStall | None) -> float | None:
    """Once, within ASK_OWN_LIMIT_S; None when it is not told."""
    if ask is None:
        return None
    with contextlib.suppress(TimeoutError, AivailableError):  # Then other checks tell more.
        async with asyncio.timeout(ASK_OWN_LIMIT_S):
            return await ask()
    return None


async def ask_until_it_tells_all(ask: AskOwn | None, answer: OwnAnswer, wait_s: float) -> OwnAnswer:
    """Of a node that runs, after its first `answer`: the latest one within `wait_s`."""
    now_s = asyncio.get_running_loop().time
    ends_s = now_s() + wait_s
    with contextlib.suppress(TimeoutError):  # Then the latest answer counts.
        async with asyncio.timeout_at(ends_s):
            while now_s() < ends_s and (answer[0] is None or not tells_all(answer[0])):
                await asyncio.sleep(ASK_AGAIN_S)
                answer = await ask_own_node(ask)
    return answer


async def reach_patiently(target: ProbeTarget, own: Own) -> NodeFinding:
    """As `reach`, and again for NEWS_WAIT_S while the outcome may change by itself."""
    now_s = asyncio.get_running_loop().time
    ends_s = now_s() + NEWS_WAIT_S
    found = await reach(target)
    with contextlib.suppress(TimeoutError):  # Then the latest finding counts.
        async with asyncio.timeout_at(ends_s):
            # Before Python 3.12 `wait_for`, which `reach` uses, can miss that it is cancelled.
            while now_s() < ends_s and may_change(found, own):
                await asyncio.sleep(ASK_AGAIN_S)
                found = await reach(target)
    return found
