"""The subprocess that holds one replica's weights and decodes for it.

Owns: tokens, KV slots, sampling, chat templates. It must not open a network socket, know of the
cluster, or outlive its peer. Imports leaves only (errors, wire, gguf), because it starts from any
runtime's interpreter. The peer starts it as `python -m aivailable.worker --fd N`.
"""
