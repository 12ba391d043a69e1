"""The virtual loop with processes: every task and callback belongs to a node's process.

Owns the bookkeeping that makes `kill -9` possible in one thread: which tasks run on whose behalf. A
dead process gets no new tasks, and what its cancelled tasks still complain about is nobody's
failure.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from fixtures.virtual_time import VirtualLoop

PRUNE_AT = 64
"""Tasks after which a process forgets those that have ended."""


class Process:
    """One start of a node. `alive` is False from the instant of its death on."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.alive = True
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.tasks: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        return f"{self.name}.{self.number}"

    def adopt(self, task: asyncio.Task[Any]) -> None:
        if len(self.tasks) >= PRUNE_AT:
            self.tasks = [entry for entry in self.tasks if not entry.done()]
        self.tasks.append(task)
        if not self.alive:
            end_unheard(task)

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Tasks that go on, oldest first."""
        return [task for task in self.tasks if not task.done()]


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_process() -> Process | None:
    """On whose behalf the running code acts; None for the simulation itself."""
    return _PROCESS.get()


class SimLoop(VirtualLoop):
    """A VirtualLoop whose tasks end with their process."""

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any
    ) -> asyncio.Task[Any]:
        context: contextvars.Context | None = kwargs.get("context")
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        task = super()._make_task(loop, coro, **kwargs)
        if process is not None:
            process.adopt(task)
        return task

    def kill(self, process: Process) -> None:
        """End everything that runs on behalf of `process`, oldest first."""
        process.alive = False
        for task in process.unfinished():
            end_unheard(task)

    def _record_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        process = _PROCESS.get()
        if process is None or process.alive:
            super()._record_failure(loop, context)


def end_unheard(task: asyncio.Task[Any]) -> None:
    """Cancel a dead process's task; whatever it dies of interests nobody."""
    task.cancel("its process is dead")
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
