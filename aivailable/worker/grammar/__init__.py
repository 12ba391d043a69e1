"""What an answer must match: JSON schema or GBNF, down to a mask over the vocabulary.

Owns: reading schemas and grammars, and the automaton that says which tokens may come. Pure. Our own
and not llama.cpp's, because that one aborts the process (a C++ exception through ctypes) where a
token does not fit or a trigger is followed by something else, and takes exponential time on
ambiguous grammars; here both fail one request.
"""
