"""What each kind of command does to the state: one handler per kind.

A handler returns a `Change` or a `Reject`. It never raises, and never reads a clock.

* `change`: what a handler returns.
* `handlers`: the table from kind to handler.
* `members`: members, roles, window, settings.
* `keys`: making and revoking API keys, and those that newcomers bring.
* `models`: the catalogue, and who holds which file.
* `deployments`: what shall run.
* `replicas`: placements with their claims, and what becomes of them.
* `merging`: adopting a cluster, and ending in one.
"""
