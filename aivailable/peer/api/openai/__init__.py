"""OpenAI's dialect: requests parsed into `wire.generation`, answers rendered in OpenAI's shapes.

`endpoints` and `embeddings` hold the routes; the rest is pure.
"""
