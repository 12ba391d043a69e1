"""The replicated state: what it holds, and how a command changes it.

`machine.apply` is the way in. It never raises, and gives the same result on every node.

* `state`: the one immutable value that all nodes share.
* `records`: every record in it, each with one writer.
* `commands`: every change, as data.
* `machine`: `apply`: one command on one state.
* `changes`: the handlers, one per kind of command.
* `codec`: commands as bytes.
* `levels`: feature levels: how versions share one log.
* `settings`: the cluster's settings: key, unit, range.
* `invariants`: what must hold in every state.
* `founding`: found, join or wait.
* `crossing`: who may end a cluster, move its node, or come in.
* `merging`: when clusters end in others.
* `removal`: who was removed for good.
* `keys`: where API keys come from, and which end with a member.
* `node_names`: members of one name told apart; whom a person means.
* `constraints`: where a deployment may run.
* `learned_memory`: what loads were measured to need.

More than fifteen files: each rule that several commands ask has a file of its own.
"""
