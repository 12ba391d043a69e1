"""The cluster's settings as people see and change them: key, unit, range, meaning.

Owns the table behind `aivailable set` and `/cluster/v1/settings`, and the checks that `apply`
repeats. A new field of `ClusterSettings` needs a line here (a test says so).

Not to be confused with the settings of one node (`aivailable.config`), nor with those of the Raft
library (`raft.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from aivailable.core.state.records import ClusterSettings

Value = int | bool


@dataclass(frozen=True, slots=True)
class Setting:
    """`unit`: bytes, ms, s, a word for what is counted, or "" for on and off."""

    key: str
    unit: str
    least: int
    most: int
    meaning: str


SETTINGS = (
    Setting("margin_bytes", "bytes", 0, 1 << 40, "left free on every GPU for other programs"),
    Setting("down_after_ms", "ms", 500, 600_000, "silent for so long, a node is down"),
    Setting("join_window_s", "s", 0, 7 * 24 * 3600, "how long a new cluster admits strangers"),
    Setting("load_attempts_max", "loads", 1, 100, "failed loads on a node before another is tried"),
    Setting("queue_per_slot_max", "requests", 1, 10_000, "that may wait for each slot"),
    Setting("idle_ttl_s", "s", 0, 366 * 24 * 3600, "replicas beyond MIN go after so long idle"),
    Setting("copies_default", "copies", 1, 256, "of a model file, where deploy says nothing"),
    Setting("spare_fill", "", 0, 1, "busy models grow into spare memory, up to MAX"),
)
KEYS: Mapping[str, Setting] = {setting.key: setting for setting in SETTINGS}


def problem(settings: ClusterSettings) -> str:
    """What is wrong with the values; "" = nothing."""
    for setting in SETTINGS:
        value = getattr(settings, setting.key)
        if not setting.least <= value <= setting.most:
            unit = f" {setting.unit}" if setting.unit else ""
            return f"{setting.key}: {setting.least} to {setting.most}{unit}, not {value}"
    return ""


def changed(settings: ClusterSettings, wishes: Mapping[str, object]) -> ClusterSettings:
    """The settings with these values. Raises ValueError that names what is wrong."""
    if not wishes:
        raise ValueError(f"nothing to set; keys are {', '.join(KEYS)}")
    values: dict[str, Value] = {}
    for key in sorted(wishes):
        setting, value = KEYS.get(key), wishes[key]
        if setting is None:
            raise ValueError(f"{key!r} is no setting; there are {', '.join(KEYS)}")
        if setting.unit and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{key} is a whole number ({setting.unit}), not {value!r}")
        if not setting.unit and not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, not {value!r}")
        values[key] = value if isinstance(value, int) else False
    after = replace(settings, **values)  # type: ignore[arg-type]
    wrong = problem(after)
    if wrong:
        raise ValueError(wrong)
    return after
