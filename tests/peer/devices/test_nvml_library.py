"""The real nvidia-ml-py over a compiled stand-in library: old cards, old drivers, lost cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.nvml_cards import (
    COMPILER,
    GTX970,
    GTX1080TI,
    H200,
    K80,
    MIB,
    P40,
    RTX3090,
    Looker,
    card,
    compiled,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-in library")
DRIVER = "driver=470.256.02"


@pytest.fixture(scope="module")
def looker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looker]:
    folder = tmp_path_factory.mktemp("nvml")
    with Looker(compiled(folder / "lib"), folder / "script") as process:
        yield process


def test_a_k80_is_two_devices(looker: Looker) -> None:
    seen = looker.look(DRIVER, card(K80, 4), card(K80, 5, free=11000))
    assert [
        (one["device_id"], one["name"], one["architecture"], one["index"])
        for one in seen["devices"]
    ] == [("0000:04:00.0", "Tesla K80", "sm_37", 0), ("0000:05:00.0", "Tesla K80", "sm_37", 1)]
    assert {one["driver"] for one in seen["devices"]} == {"470.256.02"}
    assert [one["free_bytes"] // MIB for one in seen["loads"]] == [11441 * 4 // 5, 11000]
    assert [one["utilization"] for one in seen["loads"]] == [0.0, 0.0]
    assert seen["problems"] == []


def test_unequal_cards_are_all_there_with_what_each_tells(looker: Looker) -> None:
    fleet = (GTX970, GTX1080TI, P40, RTX3090, H200)
    seen = looker.look(DRIVER, *(card(one, bus) for bus, one in enumerate(fleet, 1)))
    assert [(one["name"], one["total_bytes"] // MIB) for one in seen["devices"]] == [
        (one["name"], one["total"]) for one in fleet
    ]
    assert [one["architecture"] for one in seen["devices"]] == [
        "sm_52", "sm_61", "sm_61", "sm_86", "sm_90",
    ]  # fmt: skip
    assert seen["loads"][1]["temperature_c"] == 61.0
    assert seen["loads"][2]["utilization"] == 1.0


@pytest.mark.parametrize(
    ("fault", "field", "default"),
    [
        ({"cc": "!3"}, "architecture", ""),
        ({"pci": "!4"}, "device_id", "cuda0"),
        ({"name": "!999"}, "name", "NVIDIA GPU 0"),
        ({"width": "!3", "celsius": "!3", "milliwatts": "!4"}, "driver", "470.256.02"),
    ],
)
def test_a_fault_costs_its_field_only(
    looker: Looker, fault: dict[str, str], field: str, default: str
) -> None:
    whole = looker.look(DRIVER, card(GTX970, 1))["devices"][0]
    (device,) = looker.look(DRIVER, card(GTX970, 1, **fault))["devices"]
    assert device == {**whole, field: default}


def test_without_permission_for_the_memory_the_card_is_named(looker: Looker) -> None:
    seen = looker.look(DRIVER, card(P40, 1, total="!4"), card(GTX970, 2))
    assert [one["name"] for one in seen["devices"]] == [GTX970["name"]]
    assert seen["problems"] == ["Tesla P40 does not tell its memory; it is left out"]


@pytest.mark.parametrize(("code", "words"), [(18, "version mismatch"), (9, "Driver Not Loaded")])
def test_a_library_that_cannot_begin_says_why(looker: Looker, code: int, words: str) -> None:
    seen = looker.look(f"init=!{code}", card(GTX970, 1))
    assert seen["devices"] == []
    (problem,) = seen["problems"]
    assert problem.startswith("no NVIDIA GPU to be seen: ")
    assert words in problem


def test_a_lost_card_is_shown_as_lost_and_comes_back(looker: Looker) -> None:
    whole = (DRIVER, card(P40, 1), card(GTX970, 2))
    before = looker.look(*whole)
    lost = looker.again(DRIVER, card(P40, 1, all="!15"), card(GTX970, 2))
    assert lost["devices"] == before["devices"]
    assert lost["problems"] == [
        "Tesla P40 (0000:01:00.0) is lost: GPU is lost; "
        "nothing new goes there until it answers again"
    ]
    assert lost["loads"][0]["free_bytes"] == lost["loads"][0]["used_by_others_bytes"] == 0
    assert lost["loads"][1] == before["loads"][1]
    assert looker.again(*whole) == before


def test_a_card_that_is_gone_is_found_under_its_id_again(looker: Looker) -> None:
    """The others move up in the driver's order, and a card comes back in a new session."""
    whole = (DRIVER, card(P40, 1), card(GTX970, 2))
    before = looker.look(*whole)
    for _ in range(12):
        gone = looker.again(DRIVER, card(GTX970, 2))
    assert [one["free_bytes"] > 0 for one in gone["loads"]] == [False, True]
    assert gone["loads"][1] == before["loads"][1]
    assert looker.again(*whole) == before


def test_a_card_cut_by_mig_is_its_first_slice(looker: Looker) -> None:
    slices = [
        f"slice of=1 total={16384 * MIB} free={16000 * MIB} name=NVIDIA H200 MIG 1g.18gb",
        f"slice of=1 total={32768 * MIB} free={32000 * MIB} name=NVIDIA H200 MIG 2g.35gb",
    ]
    seen = looker.look(DRIVER, card(H200, 1, mig=1), *slices)
    (device,) = seen["devices"]
    assert (device["name"], device["total_bytes"]) == ("NVIDIA H200 MIG 1g.18gb", 16384 * MIB)
    assert (device["device_id"], device["architecture"]) == ("0000:01:00.0", "sm_90")
    assert seen["loads"][0]["free_bytes"] == 16000 * MIB
    without = looker.look(DRIVER, card(H200, 1, mig=1))
    assert without["devices"] == []
    assert "in MIG mode and has no slice" in without["problems"][0]


def test_a_function_that_an_old_driver_lacks_costs_its_field_only(tmp_path: Path) -> None:
    lacking = (
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetMigMode",
    )
    with Looker(compiled(tmp_path / "lib", *lacking), tmp_path / "script") as looker:
        seen = looker.look(DRIVER, card(GTX1080TI, 1))
    (device,) = seen["devices"]
    assert (device["name"], device["architecture"]) == (GTX1080TI["name"], "")
    assert seen["loads"][0]["temperature_c"] is None
    assert seen["loads"][0]["utilization"] == 0.25
