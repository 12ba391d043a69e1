"""Models that turn texts into vectors or scores.

* `step_loop`: texts in, vectors out, step by step.
* `pooling`: which loads do this, and how tokens become one vector.
"""
