"""What trials and benchmarks found, kept in home until device, driver or runtime change.

Owns one small file: verdicts and speeds by key, the newest last, at most ENTRIES_MAX of each. A
file that is damaged is as good as none: everything is tried anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

FILE: Final = "devices.json"
ENTRIES_MAX: Final = 256
FILE_MAX_BYTES: Final = 1 << 20
WORDS_MAX_CHARS: Final = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialVerdict:
    """Whether a backend really computes on a device."""

    usable: bool
    words: str = ""
    """Why not: what the child said last, or how it ended."""
    lasting: bool = True
    """False: memory was short or nobody answered in time, which another day may mend."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens/s of the generated model (worker.llama.generated_model.BENCHMARK)."""

    decode: float
    prefill: float


class Facts(Protocol):
    """The part of ports.Home that is used here."""

    def load(self, name: str) -> bytes | None: ...

    def save(self, name: str, data: bytes) -> None: ...


def key_of(device: str, backend: str, driver: str, build: str) -> str:
    """One line for what a verdict depends on. `device`: id and name. `build`: what the runtime
    says of itself."""
    return "|".join((device, backend, driver, build))


class TrialCache:
    """Verdicts and speeds by key."""

    def __init__(
        self,
        load: Callable[[], bytes | None] = lambda: None,
        save: Callable[[bytes], None] | None = None,
    ) -> None:
        """`save`: None = nothing is written. An OSError of either costs the memory only."""
        self._save = save
        self._verdicts: dict[str, TrialVerdict] = {}
        self._speeds: dict[str, Speed] = {}
        try:
            self._read((load() or b"")[:FILE_MAX_BYTES])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("what is kept of the devices cannot be read (%s): trying anew", error)
            self._verdicts, self._speeds = {}, {}

    def verdict(self, key: str) -> TrialVerdict | None:
        return self._verdicts.get(key)

    def speed(self, key: str) -> Speed | None:
        return self._speeds.get(key)

    def keep_verdict(self, key: str, verdict: TrialVerdict) -> None:
        """Remember it; on disk only when it lasts."""
        self._verdicts.pop(key, None)
        self._verdicts[key] = verdict
        self._write()

    def keep_speed(self, key: str, speed: Speed) -> None:
        self._speeds.pop(key, None)
        self._speeds[key] = speed
        self._write()

    def _read(self, data: bytes) -> None:
        told: Any = json.loads(data) if data else {}
        for key, entry in told.get("verdicts", {}).items():
            usable, words = bool(entry["usable"]), str(entry["words"])[:WORDS_MAX_CHARS]
            self._verdicts[str(key)] = TrialVerdict(usable, words)
        for key, entry in told.get("speeds", {}).items():
            self._speeds[str(key)] = Speed(float(entry["decode"]), float(entry["prefill"]))

    def _write(self) -> None:
        if self._save is None:
            return
        lasting = [(key, one) for key, one in self._verdicts.items() if one.lasting]
        document = {
            "verdicts": {
                key: {"usable": one.usable, "words": one.words}
                for key, one in lasting[-ENTRIES_MAX:]
            },
            "speeds": {
                key: {"decode": one.decode, "prefill": one.prefill}
                for key, one in list(self._speeds.items())[-ENTRIES_MAX:]
            },
        }
        try:
            self._save(json.dumps(document, indent=1).encode())
        except OSError as error:
            log.warning("what was found out of the devices is not kept: %s", error)


def kept_in(home: Facts) -> TrialCache:
    """What this node's home keeps."""
    return TrialCache(lambda: home.load(FILE), lambda data: home.save(FILE, data))
