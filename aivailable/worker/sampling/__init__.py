"""Logits to a token: llama.cpp's default chain in numpy, with draws keyed by (seed, position).

Owns: the arithmetic of drawing. Pure. It must not know requests, text or grammars beyond a mask of
allowed tokens.

* `sampler`: one request's chain.
* `parameters`: which parameters are accepted.
* `candidates`: tokens still in the race.
* `penalties`: what was said weighs on the logits.
* `mirostat`: Mirostat 1 and 2.
* `dice`: draws keyed by seed and position.
* `logprobs`: log probabilities.
"""
