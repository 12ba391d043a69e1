"""The step loop of a model that writes: who is in the next step, and what comes of it.

`step_loop` is the way in. `batcher`, `sequences`, `radix`, `pace`, `drafting` and `warm_limit` are
pure.

* `step_loop`: take messages, plan, decode, draw, tell.
* `batcher`: slots, the waiting line, rows and chunks.
* `preparing`: the line of requests that are made ready beside the loops.
* `making`: a request becomes a job, beside the loop.
* `job`: one answer: tokens, text, limits.
* `sequences`: who holds which tokens in the cache.
* `radix`: which sequence begins alike.
* `warm_limit`: how many idle tokens earn their cells.
* `opening`: what every prompt begins with.
* `pace`: prefill beside running streams.
* `drafting`: guessed tokens, and whether they pay.
* `token_tables`: the model's tokens, worked out once.
* `detokenizer`: bytes to text, stop strings.
"""
