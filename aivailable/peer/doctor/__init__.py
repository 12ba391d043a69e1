"""`aivailable doctor`: which leg between this machine and the others fails, and what to do.

* `examine`: all probes at once, then the verdicts.
* `findings`: facts, without judgement.
* `machine`: probes this machine.
* `network`: probes the network.
* `patience`: waits for what a young node has not heard yet.
* `verdicts`: judges machine and network.
* `verdicts_nodes`: judges the way to other nodes.
"""

from aivailable.peer.doctor.examine import Case, DoctorReport, examine
from aivailable.peer.doctor.findings import Check, CheckVerdict

__all__ = ["Case", "Check", "CheckVerdict", "DoctorReport", "examine"]
