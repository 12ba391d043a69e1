"""The replicated log: PySyncObj 0.3.17, ticked by one asyncio task over links of our own.

Owns: consensus, its journal and snapshot, the membership of voters, and the two ports that others
implement (`Link` by peer, `Machine` by the state machine above). The only importer of pysyncobj.
It must not know what a command means, open a socket or read a clock. See DESIGN.md beside this.
"""
