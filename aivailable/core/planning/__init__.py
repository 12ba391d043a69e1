"""What goes where: from the replicated state to the next commands.

`planner` is the way in. It calls the others, one question each. All of it is pure.

* `planner`: all that the controller proposes next.
* `placement`: where a replica goes: filter, score, explain.
* `capacity`: free bytes of nodes and devices while one plan is made.
* `packing`: room by moving what is only planned.
* `preemption`: room by ending lower priorities.
* `memory_pressure`: who leaves a card that other programs fill.
* `scaling`: one more replica of what is busy.
* `idle_policy`: what is asked for, what is idle, and for how long.
* `forecast`: what would come of a change.
* `fit_report`: whether a model fits, and what would make it fit.
* `standalone`: what a node loads by itself while there is no leader.
"""
