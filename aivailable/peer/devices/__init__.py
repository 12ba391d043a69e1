"""The GPUs of this machine, found, tried, measured and watched. The only importer of vendor
libraries.

Public: `SystemDevices`, a `peer.ports.DevicePort`, and what the composition root builds it of.
Everything else here is its business.

* `system`: all devices of this machine.
* `gpus`: one GPU, whoever saw it.
* `architectures`: which architectures the cards here have.
* `nvml`: NVIDIA's library.
* `amd`: AMD's library.
* `sysfs`: the kernel's files.
* `offload`: what each llama.cpp build can use.
* `trials`: does a backend compute on a device, how fast.
* `trial_cache`: what trials found, kept in home.
* `benchmark`: measures a device when it is idle.
* `known_cards`: names and targets of cards.
* `known_speeds`: makers' figures for `sim` devices.
* `simulated`: what others use on `sim` devices.
"""

from aivailable.peer.devices.benchmark import Benchmark
from aivailable.peer.devices.offload import survey
from aivailable.peer.devices.system import SystemDevices
from aivailable.peer.devices.trial_cache import kept_in
from aivailable.peer.devices.trials import Trials

__all__ = ["Benchmark", "SystemDevices", "Trials", "kept_in", "survey"]
