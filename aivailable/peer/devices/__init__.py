"""The GPUs of this machine, found and watched. The only importer of vendor libraries.

Public: `SystemDevices`, a `peer.ports.DevicePort`. Everything else here is its business.
"""

from aivailable.peer.devices.system import SystemDevices

__all__ = ["SystemDevices"]
