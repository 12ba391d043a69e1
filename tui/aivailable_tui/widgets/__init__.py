"""The parts of the screen, one module per area.

* `bars`: the lines at top and bottom.
* `nodes`: nodes and devices.
* `deployments`: deployments and replicas.
* `events`: what happened last.
* `help`: the help page.
* `panel`: a titled area.
"""
