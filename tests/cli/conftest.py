"""A cluster that fits on a screen, for the commands to talk to."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
from fixtures.cluster_status import lab
from fixtures.plans import some_fit, some_plan

from aivailable.cli import target
from aivailable.client import ChatDelta, KeyInfo, Recovery
from aivailable.client.answers import Removal, SettingInfo
from aivailable.core.serving.status import (
    ClusterStatus,
    DrainStatus,
    EventStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.state.records import Deployment


@dataclasses.dataclass
class FakeStream:
    deltas: tuple[ChatDelta, ...]
    ingress: str = "a" * 52
    host: str = "b" * 52

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        for delta in self.deltas:
            yield delta


@dataclasses.dataclass
class FakeClient:
    """Answers from its fields and remembers what was asked; `error` is raised by any call."""

    statuses: list[ClusterStatus] = dataclasses.field(default_factory=lambda: [lab()])
    error: Exception | None = None
    calls: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    answer: tuple[ChatDelta, ...] = (ChatDelta("Hel"), ChatDelta("lo"))
    opened: list[tuple[list[str], str | None]] = dataclasses.field(default_factory=list)

    planned: PlanStatus = dataclasses.field(default_factory=some_plan)
    fitting: FitStatus = dataclasses.field(default_factory=some_fit)
    drained: DrainStatus = dataclasses.field(
        default_factory=lambda: DrainStatus(
            "b" * 52, "rig2", True, True, ("qwen#1.1",), ("llama-70b",)
        )
    )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def _called(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def state(self, *, consistent: bool = False) -> ClusterStatus:
        self._called("state")
        return self.statuses[-1]

    async def watch(self) -> AsyncIterator[ClusterStatus]:
        for status in self.statuses:
            yield status

    async def events(self, after: int = 0, *, follow: bool = True) -> AsyncIterator[EventStatus]:
        self._called("events", after, follow)
        for event in self.statuses[-1].events:
            if event.version > after:
                yield event

    async def deploy(self, model: str, **fields: Any) -> Deployment:
        self._called("deploy", model, fields)
        return Deployment(name=fields["name"] or "mistral-7b", digest="d" * 64)

    async def preview(self, model: str, **fields: Any) -> PlanStatus:
        self._called("preview", model, fields)
        return self.planned

    async def fit(self, model: str, **fields: Any) -> FitStatus:
        self._called("fit", model, fields)
        return self.fitting

    async def undeploy(self, name: str) -> None:
        self._called("undeploy", name)

    async def keys(self) -> tuple[KeyInfo, ...]:
        self._called("keys")
        return (
            KeyInfo("11112222", "admin", "founder", 1_790_000_000_000),
            KeyInfo("33334444", "user", "webui", 0, revoked=True),
        )

    async def create_key(self, scope: str, label: str) -> tuple[str, KeyInfo]:
        self._called("create_key", scope, label)
        return "aiv-secret", KeyInfo("55556666", scope, label)

    async def revoke_key(self, key_id: str, *, force: bool = False) -> None:
        self._called("revoke_key", key_id, force)

    async def removal(self, node: str, keep: Any, end: Any) -> Removal:
        self._called("removal", node)
        if not keep and node == "rig9":
            return Removal(node, (), "no admin key would be left")
        return Removal(
            node, (KeyInfo("11112222", "admin", "founder", ends="11112222" not in keep),)
        )

    async def remove(self, node: str, keep: Any, end: Any) -> None:
        self._called("remove", node, tuple(keep), tuple(end))

    async def window(self, duration_s: int) -> None:
        self._called("window", duration_s)

    async def drain(self, node: str, draining: bool, *, force: bool = False) -> DrainStatus:
        self._called("drain", node, draining, force)
        return self.drained

    async def pause(self, node: str, duration_s: int) -> PauseStatus:
        self._called("pause", node, duration_s)
        return PauseStatus(
            "b" * 52, node or "rig1", duration_s, ("qwen#1.1",) if duration_s else ()
        )

    async def settings(self) -> tuple[SettingInfo, ...]:
        self._called("settings")
        return (
            SettingInfo("idle_ttl_s", 600, 600, "s", 0, 9, "idle"),
            SettingInfo("spare_fill", True, True, "", 0, 1, "fills"),
        )

    async def change_settings(self, wishes: dict[str, int | bool]) -> tuple[SettingInfo, ...]:
        self._called("change_settings", wishes)
        return tuple(
            dataclasses.replace(one, value=wishes.get(one.key, one.value))
            for one in await self.settings()
        )

    async def leave(self) -> None:
        self._called("leave")

    async def merge(self, into: str) -> None:
        self._called("merge", into)

    async def recover(self, expected: Any, keep_keys: Any) -> Recovery:
        self._called("recover", expected, tuple(keep_keys))
        awaited = ("host-b",) if expected is None else ()
        return Recovery("new" + "c" * 23, ("host-b",), awaited, ("11112222",), ("tiny",))

    def chat(self, model: str, messages: list[dict[str, str]], **params: Any) -> FakeStream:
        self._called("chat", model, [dict(message) for message in messages], params)
        return FakeStream(self.answer)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """Every command talks to this one, from a home that is empty."""
    fake = FakeClient()

    def open_client(urls: list[str], api_key: str | None, *, mapped: bool = False) -> FakeClient:
        fake.opened.append((urls, api_key))
        return fake

    monkeypatch.setattr(target, "open_client", open_client)
    monkeypatch.setenv("AIVAILABLE_HOME", str(tmp_path))
    for name in ("AIVAILABLE_URL", "AIVAILABLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return fake
