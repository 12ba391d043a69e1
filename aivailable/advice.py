"""The commands that our texts tell people to type: the only place that spells one.

Owns each command's id, words and arguments, and how it is written in a sentence. Imports nothing
of ours, so that every room may use it. Each id is run by a test, which carries the
mark `remedy` with that id (`tests/test_tidy_advice.py` compares them).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Final

PROGRAM: Final = "aivailable"


@dataclass(frozen=True, slots=True)
class Advice:
    """One command. Its places are arguments in capitals (`NODE`), which `of` fills.

    In an f-string it is the command in backquotes, as our sentences show it.
    """

    id: str
    """Names it in tests; the same whatever the places are filled with."""
    command: str
    """The words after the program's name: "key create"."""
    arguments: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The bare command line, quoted for a shell where it needs to be."""
        words = [word if _is_place(word) else shlex.quote(word) for word in self.arguments]
        return " ".join([PROGRAM, self.command, *words])

    def of(self, *values: str) -> Advice:
        """The same with its first places filled, in order."""
        left = iter(values)
        words = (next(left, word) if _is_place(word) else word for word in self.arguments)
        return replace(self, arguments=tuple(words))

    def __str__(self) -> str:
        return f"`{self.line}`"


def _is_place(word: str) -> bool:
    return word.isalpha() and word.isupper()


UP: Final = Advice("up", "up")
UP_CLUSTER: Final = Advice("up-cluster", "up", ("--cluster", "NAME"))
UP_CPU: Final = Advice("up-cpu", "up", ("--devices", "cpu:4GiB"))
UP_NEW_IDENTITY: Final = Advice("up-new-identity", "up", ("--new-identity",))
UP_PORT: Final = Advice("up-port", "up", ("--port", "PORT"))
UP_SEED: Final = Advice("up-seed", "up", ("--seed", "HOST"))

DOCTOR: Final = Advice("doctor", "doctor")
DOCTOR_PEER: Final = Advice("doctor-peer", "doctor", ("--peer", "HOST"))
STATUS: Final = Advice("status", "status")
TOP_HOME: Final = Advice("top-home", "top", ("--home", "HOME"))

ADMIT: Final = Advice("admit", "admit")
INVITE: Final = Advice("invite", "invite")
LEAVE: Final = Advice("leave", "leave")
LOCK: Final = Advice("lock", "lock")
MERGE: Final = Advice("merge", "merge", ("CLUSTER",))
PAUSE_OFF: Final = Advice("pause-off", "pause", ("--off",))
REMOVE: Final = Advice("remove", "remove", ("NODE",))
UNDRAIN: Final = Advice("undrain", "undrain", ("NODE",))

KEY_CREATE: Final = Advice("key-create", "key create")
KEY_CREATE_ADMIN: Final = Advice("key-create-admin", "key create", ("--scope", "admin"))
KEY_LIST: Final = Advice("key-list", "key list")
KEY_REVOKE_FORCE: Final = Advice("key-revoke-force", "key revoke", ("ID", "--force"))

CHAT: Final = Advice("chat", "chat", ("MODEL", "Hello"))
DEPLOY: Final = Advice("deploy", "deploy", ("MODEL",))
MODELS: Final = Advice("models", "models")
UNDEPLOY: Final = Advice("undeploy", "undeploy", ("MODEL",))

RUNTIME_ADD: Final = Advice("runtime-add", "runtime add", ("BACKEND",))
RUNTIME_REMOVE: Final = Advice("runtime-remove", "runtime remove", ("BACKEND",))
