"""A file says what other programs use on sim devices; the cpu's budget is nobody else's."""

from __future__ import annotations

from pathlib import Path

from aivailable.peer.devices import SystemDevices
from aivailable.peer.devices.simulated import SimulatedUse

SPECS = (("cpu", "CPU", 100), ("sim", "GTX", 100))


def looked(devices: SystemDevices) -> list[tuple[int, int]]:
    """(free, used by others) of cpu0 and sim0."""
    return [(load.free_bytes, load.used_by_others_bytes) for load in devices.load()]


def test_the_file_counts_for_sim_devices_at_every_look(tmp_path: Path) -> None:
    path = tmp_path / "use.json"
    held = {"cpu0": 10, "sim0": 30}
    devices = SystemDevices(SPECS, lambda: held, simulated=SimulatedUse(path))
    assert looked(devices) == [(90, 0), (70, 0)]
    path.write_text('{"sim0": 20, "cpu0": 50}')
    assert looked(devices) == [(90, 0), (50, 20)]
    path.write_text('{"sim0": 90}')
    assert looked(devices) == [(90, 0), (0, 90)]
    path.unlink()
    assert looked(devices) == [(90, 0), (70, 0)]


def test_what_cannot_be_read_leaves_the_last_word_standing(tmp_path: Path) -> None:
    path = tmp_path / "use.json"
    use = SimulatedUse(path)
    path.write_text('{"sim0": 20}')
    assert use.bytes_on("sim0") == 20
    for broken in ('{"sim0": ', "[1]", '{"sim0": "much"}', "null"):
        path.write_text(broken)
        assert use.bytes_on("sim0") == 20, broken
    path.write_text('{"sim0": -5}')
    assert use.bytes_on("sim0") == 0
