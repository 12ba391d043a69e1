"""Who is in touch, and who votes.

* `liveness`: who is heard, silent or down.
* `voters`: who should vote, one small step at a time.
"""
