"""`aivailable doctor`: which leg between this machine and the others fails, and what to do.

`machine` and `network` probe, `patience` asks again, `verdicts` and `verdicts_nodes` judge (pure),
`examine` joins them.
"""

from aivailable.peer.doctor.examine import Case, Report, examine
from aivailable.peer.doctor.findings import Check, Verdict

__all__ = ["Case", "Check", "Report", "Verdict", "examine"]
