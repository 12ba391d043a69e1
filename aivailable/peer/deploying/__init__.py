"""From a user's words to a committed deployment: files, bytes, checks.

* `deploying`: register, measure, check, commit.
* `companions`: adapters and projectors beside the model.
* `memory_need`: bytes now, per token and per slot.
* `memory_predictor`: the dry run, else the formula.
* `growth`: how far automatic sizes may grow.
"""
