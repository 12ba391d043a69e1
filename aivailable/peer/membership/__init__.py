"""Which cluster this node belongs to, and how that changes.

Not to be confused with `joining`: those are the means. This is the course.

* `membership`: resume, look around, join, found, give up.
* `announcement`: what the LAN is told of this node.
* `yielding`: a pristine cluster ends in another.
* `merging`: two used clusters become one.
* `carryover`: what an ended cluster brings along.
* `recovery`: founded anew from a survivor.
* `new_identity`: this machine as a new node, its models kept.
* `rejoining`: a member that was off finds its way.
"""
