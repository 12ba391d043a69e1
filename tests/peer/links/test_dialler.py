"""How often a member is dialled that does not answer: soon, then steadily, for ever."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

from fixtures.virtual_time import elapse, run

from aivailable.peer.links.dialler import BACKOFF_ABSENT_MAX_S, EXPECTED_S, Dialler

HOUR_S = 3600.0


def test_after_an_hour_of_silence_it_still_dials_every_two_seconds() -> None:
    """Else a long partition would end slowly: rejoining has two seconds."""

    async def scenario() -> None:
        loop, tries = asyncio.get_running_loop(), [asyncio.get_running_loop().time()]

        async def nobody() -> bool:
            tries.append(loop.time())
            return False

        dialler = Dialler(nobody, random.Random(1))
        await elapse(HOUR_S)
        gaps = [after - before for before, after in pairwise(tries)]
        soon = [gap for gap, at in zip(gaps, tries[1:], strict=True) if at < tries[0] + EXPECTED_S]
        assert BACKOFF_ABSENT_MAX_S <= 2.0
        assert max(gaps) <= BACKOFF_ABSENT_MAX_S
        assert max(soon) <= 1.0
        assert tries[-1] > tries[0] + HOUR_S - BACKOFF_ABSENT_MAX_S
        dialler.task.cancel()

    run(scenario(), limit_s=2 * HOUR_S)


def test_news_is_dialled_at_once() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        tries: list[float] = []

        async def nobody() -> bool:
            tries.append(loop.time())
            return False

        dialler = Dialler(nobody, random.Random(1))
        await elapse(HOUR_S)
        told_s = loop.time()
        dialler.nudge()
        await elapse(0.001)
        assert tries[-1] == told_s
        dialler.task.cancel()

    run(scenario(), limit_s=2 * HOUR_S)
