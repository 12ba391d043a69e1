"""What an answer must match: JSON schema or GBNF, down to a mask over the vocabulary.

Owns: reading schemas and grammars, and the automaton that says which tokens may come. Pure. Our own
and not llama.cpp's, because that one aborts the process (a C++ exception through ctypes) where a
token does not fit or a trigger is followed by something else, and takes exponential time on
ambiguous grammars; here both fail one request.

* `schema`: JSON schema into rules.
* `gbnf`: GBNF into rules.
* `pattern`: regular expressions into rules.
* `json_text`: JSON values as rules.
* `merge`: schemas that hold at once.
* `rules`: the tree of rules.
* `spelling`: rules written as GBNF.
* `network`: byte edges and calls.
* `automaton`: states that bytes lead through.
* `vocabulary`: which tokens fit.
* `binding`: one answer under a grammar.
"""
