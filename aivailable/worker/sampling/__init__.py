"""Logits to a token: llama.cpp's default chain in numpy, with draws keyed by (seed, position).

Owns: the arithmetic of drawing. Pure. It must not know requests, text or grammars beyond a mask of
allowed tokens.
"""
