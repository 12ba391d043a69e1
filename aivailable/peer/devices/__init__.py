"""The GPUs of this machine, found, tried, measured and watched. The only importer of vendor
libraries.

Public: `SystemDevices`, a `peer.ports.DevicePort`, and what the composition root builds it of.
Everything else here is its business.
"""

from aivailable.peer.devices.benchmark import Benchmark
from aivailable.peer.devices.kept import kept_in
from aivailable.peer.devices.offload import survey
from aivailable.peer.devices.system import SystemDevices
from aivailable.peer.devices.trials import Trials

__all__ = ["Benchmark", "SystemDevices", "Trials", "kept_in", "survey"]
