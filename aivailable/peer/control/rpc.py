"""Small questions between linked members: RpcCall → RpcReply over the control class.

Owns matching replies to calls and their deadlines. What a method does is given as a table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aivailable.core.ids import NodeId, short
from aivailable.errors import AivailableError, LinkLost
from aivailable.peer.ports import Links
from aivailable.peer.tasks import Tasks
from aivailable.wire.peer import RpcCall, RpcReply

log = logging.getLogger("aivailable.rpc")

CALL_DEADLINE_S = 5.0
SERVED_MAX_CALLS = 16
"""Of one member that are being answered at once; more are refused, so that none can fill memory."""

Method = Callable[[NodeId, Mapping[str, str]], Awaitable[Mapping[str, str]]]


class Rpc:
    """Both sides of the exchange, for one node."""

    def __init__(self, links: Links, tasks: Tasks, methods: Mapping[str, Method]) -> None:
        self._links = links
        self._tasks = tasks
        self._methods = methods
        self._serving: dict[NodeId, int] = {}
        self._next_id = 0
        self._open: dict[int, tuple[NodeId, asyncio.Future[Mapping[str, str]]]] = {}

    async def ask(
        self,
        node: NodeId,
        method: str,
        arguments: Mapping[str, str],
        deadline_s: float = CALL_DEADLINE_S,
    ) -> Mapping[str, str]:
        """Raises LinkLost (no link, no answer in time) or AivailableError (the other refused)."""
        self._next_id += 1
        call_id = self._next_id
        answer: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self._open[call_id] = (node, answer)
        try:
            if not self._links.send(node, RpcCall(call_id, method, arguments)):
                raise LinkLost(f"no link to {short(node)}")
            async with asyncio.timeout(deadline_s):
                return await answer
        except TimeoutError as error:
            raise LinkLost(f"{short(node)} did not answer {method} in {deadline_s:g} s") from error
        finally:
            del self._open[call_id]

    def called(self, node: NodeId, call: RpcCall) -> None:
        serving = self._serving.get(node, 0)
        if serving >= SERVED_MAX_CALLS:
            why = f"{SERVED_MAX_CALLS} calls of this node are being answered already; try again"
            self._links.send(node, RpcReply(call.call_id, False, error=why))
            return
        self._serving[node] = serving + 1
        self._tasks.spawn(self._serve(node, call), f"call {call.method}")

    def replied(self, node: NodeId, reply: RpcReply) -> None:
        asked, answer = self._open.get(reply.call_id, ("", None))
        if answer is None or asked != node or answer.done():
            return
        if reply.ok:
            answer.set_result(reply.values)
        else:
            answer.set_exception(AivailableError(reply.error))

    async def _serve(self, node: NodeId, call: RpcCall) -> None:
        try:
            await self._answer(node, call)
        finally:
            self._serving[node] -= 1
            if not self._serving[node]:
                del self._serving[node]

    async def _answer(self, node: NodeId, call: RpcCall) -> None:
        method = self._methods.get(call.method)
        try:
            if method is None:
                raise AivailableError(f"no method {call.method!r} in this version")
            reply = RpcReply(call.call_id, True, await method(node, call.arguments))
        except AivailableError as error:
            log.info("%s asked for %s: %s", short(node), call.method, error)
            reply = RpcReply(call.call_id, False, error=str(error))
        self._links.send(node, reply)
