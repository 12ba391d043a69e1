"""The pure core: it decides, and does nothing. No I/O, clock, randomness, asyncio or logging.

* `state`: the replicated state, its records, commands and rules.
* `planning`: what goes where.
* `serving`: which replica answers; what people see.
* `cluster`: who is in touch, who votes.
* `agent`: what one node does to match its placements.
* `backoff`: how long to wait before the next try.
* `ids`: how ids are made and shown.
"""
