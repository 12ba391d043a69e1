"""OpenAI's dialect: requests parsed into `wire.generation`, answers rendered in OpenAI's shapes.

* `endpoints`: routes of chat, completions and models.
* `embeddings`: routes of embeddings and rerank.
* `requests`: chat and completion requests, parsed.
* `messages`: chat messages in the worker's one shape.
* `sampling`: sampling parameters under all their names.
* `tools`: functions that a model may call.
* `constraints`: schemas and grammars for the answer.
* `unsupported`: what is ignored, and what is refused.
* `models`: a model's name to its deployment.
* `answers`: a generation as one document or a stream.
* `choices`: one choice as it grows.
* `answer_types`: the shapes of OpenAI's answers.
* `replies`: the documents themselves.
"""
