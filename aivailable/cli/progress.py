"""The bars that show a deployment come up, one per replica.

Draws on stderr; on something that is no terminal it prints a line at each change instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn

from aivailable.cli import render
from aivailable.core.serving.status import DeploymentStatus, ReplicaStatus

_LEFT = ("gone",)


class LoadProgress:
    """Context manager; feed `update` with every status seen."""

    def __init__(self) -> None:
        self._screen = render.console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            console=self._screen,
            transient=True,
            disable=not self._screen.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def __enter__(self) -> LoadProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def update(self, deployment: DeploymentStatus, replicas: Sequence[ReplicaStatus]) -> None:
        """Show where each replica stands; before there is one, what the deployment says."""
        living = [part for part in replicas if part.status not in _LEFT]
        if not living:
            why = f": {deployment.explanation}" if deployment.explanation else ""
            self._line(deployment.name, f"{deployment.name} {deployment.state}{why}", None)
        elif deployment.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(deployment.name))
        for part in living:
            why = f": {part.reason}" if part.reason else ""
            text = f"{part.deployment} on {part.node_name}: {part.status}{why}"
            moving = part.status in ("fetching", "loading")
            self._line(part.replica, text, part.progress if moving else None)
        for replica in [known for known in self._tasks if "#" in known]:
            if all(part.replica != replica for part in living):
                self._bars.remove_task(self._tasks.pop(replica))

    def _line(self, key: str, text: str, fraction: float | None) -> None:
        if not self._screen.is_terminal:
            if self._said.get(key) != text:
                self._said[key] = text
                render.note(text)
            return
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(text, total=None)
        self._bars.update(
            self._tasks[key],
            description=text,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
        )
