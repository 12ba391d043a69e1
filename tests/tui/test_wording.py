"""How sizes, ages and bars are written."""

from __future__ import annotations

import dataclasses

import pytest
from fixtures.cluster_status import device, node
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.serving.status import DeviceStatus
from aivailable_tui import wording
from aivailable_tui.widgets.deployments import slot_marks
from aivailable_tui.widgets.nodes import memory_bar

GIB = 2**30


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [
        (0, "0.0 GiB"),
        (None, "?"),
        (1, "1 MiB"),
        (50 * 2**20, "50 MiB"),
        (int(1.5 * GIB), "1.5 GiB"),
    ],
)
def test_size(count_bytes: int | None, text: str) -> None:
    assert wording.size(count_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (725, "12 min 05 s"),
        (3700, "1 h 01 min"),
        (3600, "1 h"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert wording.span(seconds) == text
    assert wording.span(90_000) == "1 d 01 h"


def test_age() -> None:
    assert wording.age(None) == "never heard"
    assert wording.age(400) == "now"
    assert wording.age(65_000) == "1 min 05 s ago"


def test_every_state_has_a_sign_of_its_own_tone() -> None:
    assert wording.symbol("ready") != wording.symbol("failed")
    assert wording.tone("a state of a later version") == "warn"
    assert wording.symbol("a state of a later version") == "?"


def test_a_gpu_that_nobody_expected_is_no_problem() -> None:
    def told(*devices: DeviceStatus) -> tuple[str, ...]:
        missing = ("no NVIDIA GPU to be seen",)
        return wording.problems(
            dataclasses.replace(node("a" * 52, "rig", "up", *devices), problems=missing)
        )

    assert told(device("CPU", "cpu", 4, 0)) == ()
    assert told(device("RX 580", "vulkan", 8, 0)) != ()
    assert told() != ()


def test_a_device_is_labelled_once() -> None:
    assert wording.device_label(device("CPU", "cpu", 4, 0)) == "CPU"
    assert wording.device_label(device("P40", "cuda", 24, 0)) == "P40 cuda"


def test_free_never_exceeds_what_claims_leave() -> None:
    loading = DeviceStatus("gpu", "P40", "cuda", 24 * GIB, 12 * GIB, free_bytes=24 * GIB)
    assert wording.free_bytes(loading) == 12 * GIB
    unheard = DeviceStatus("gpu", "P40", "cuda", 24 * GIB, 4 * GIB)
    assert wording.free_bytes(unheard) == 20 * GIB


@given(
    total=st.integers(0, 200),
    claimed=st.integers(0, 300),
    others=st.integers(0, 300),
    columns=st.integers(8, 48),
)
def test_a_bar_is_as_wide_as_it_is_told(
    total: int, claimed: int, others: int, columns: int
) -> None:
    bar = memory_bar(device("P40", "cuda", total, claimed, others), columns).plain
    assert len(bar) == columns
    assert bar == "█" * bar.count("█") + "▒" * bar.count("▒") + "─" * bar.count("─")
    assert ("█" in bar) == (claimed > 0)


def test_slots_are_figures_when_they_are_many() -> None:
    assert slot_marks(1, 3).plain == "▮▯▯ 1/3 busy"
    assert slot_marks(7, 64).plain == "7/64 busy"
