"""Requests under way by their key: when the key is revoked, they end.

Owns the list of them and the task that looks after it. It knows no kind of request: whatever a
revoked key still has under way (an answer, a stream, a follower of events, a place in a line) is
cancelled, and the request's own end is told as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aivailable.core.ids import KeyId
from aivailable.core.state.records import ApiKey
from aivailable.errors import RequestError
from aivailable.peer.service import ApiKeys, Observation

LOOK_EVERY_S = 0.5
"""Keys are looked up at each change of the state, and this often: a node may change its cluster."""
GRACE_S = 0.5
"""A request that revoked its own key gets its answer out; and a state that is just being read from
the log may lack a key for a moment."""

log = logging.getLogger("aivailable.api")


@dataclass(eq=False, slots=True)
class _Live:
    """One request under way."""

    key: ApiKey
    task: asyncio.Task[object]
    ended: bool = False


class LiveRequests:
    """`hold` for each request with a key; `run` for as long as the server does."""

    def __init__(self, api_keys: ApiKeys, observation: Observation) -> None:
        self._api_keys = api_keys
        self._observation = observation
        self._live: dict[_Live, None] = {}
        self._some = asyncio.Event()
        self._seen = 0
        """The version of the state that was looked at last."""

    @contextmanager
    def hold(self, key: ApiKey | None) -> Iterator[None]:
        """Until the block ends. Raises RequestError 401 in it when the key is revoked."""
        task = asyncio.current_task()
        if key is None or task is None:
            yield
            return
        live = _Live(key, task)
        self._live[live] = None
        self._some.set()
        try:
            yield
        except asyncio.CancelledError:
            # The client may have gone in the same moment: then there is nobody to tell.
            if not live.ended or task.uncancel() > 0:
                raise
            raise RequestError(
                401, "key_revoked", f"the API key {key.key_id} was revoked: the request ends here"
            ) from None
        finally:
            del self._live[live]
            if not self._live:
                self._some.clear()

    async def run(self) -> None:
        """Ends what revoked keys have under way, for ever."""
        while True:
            await self._some.wait()
            await self._news()
            gone = self._revoked()
            if not gone:
                continue
            await asyncio.sleep(GRACE_S)
            self._end(gone & self._revoked())

    async def _news(self) -> None:
        """Returns when the state has changed, or after LOOK_EVERY_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                try:
                    self._seen = await self._observation.changed(self._seen)
                except RequestError:
                    # In no cluster at the moment: the next one has versions of its own.
                    self._seen = 0
                    await asyncio.sleep(LOOK_EVERY_S)

    def _revoked(self) -> frozenset[KeyId]:
        """Of the keys with requests under way. A node without its cluster's state knows nothing of
        keys: that is no revocation."""
        if not self._observation.ready()[0]:
            return frozenset()
        keys = {live.key.key_id: live.key for live in self._live}
        return frozenset(name for name, key in keys.items() if not self._is_valid(key))

    def _is_valid(self, key: ApiKey) -> bool:
        known = self._api_keys.with_id(key.key_id)
        return known is not None and known.hashed == key.hashed

    def _end(self, keys: frozenset[KeyId]) -> None:
        ending = [live for live in self._live if live.key.key_id in keys and not live.ended]
        for live in ending:
            live.ended = True
            live.task.cancel()
        if ending:
            log.warning(
                "revoked: %s; %d requests under way are ended", ", ".join(sorted(keys)), len(ending)
            )
