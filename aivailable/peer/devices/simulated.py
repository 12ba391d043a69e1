"""What other programs use on this node's `sim` devices, as a file in home says.

Owns reading that file: a sim device has no driver to ask, and who tries out how the cluster shares
cards with other programs writes there what those hold. Must not be used for real devices. Asked by
`devices.system` at every look at the live figures.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

FILE_NAME = "sim-use.json"
"""{"sim0": BYTES, …}; no file: nobody else uses anything."""
FILE_MAX_BYTES = 16 * 1024

log = logging.getLogger("aivailable.devices")


class SimulatedUse:
    """Reads the file anew each time; one that cannot be read leaves the last word standing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used: dict[str, int] = {}
        self._trouble = ""

    def bytes_on(self, device_id: str) -> int:
        """Bytes of other programs on the device."""
        self._read()
        return self._used.get(device_id, 0)

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                plain = json.loads(file.read(FILE_MAX_BYTES))
            self._used = {str(key): max(0, int(value)) for key, value in plain.items()}
            self._trouble = ""
        except FileNotFoundError:
            self._used = {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("%s: %s", self._path, error)
