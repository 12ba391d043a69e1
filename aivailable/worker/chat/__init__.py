"""Chats: the model's own template in a sandbox, its family's format, the answer read back.

* `conversation`: the way in: a request becomes prompt, parser and grammar.
* `template`: the model's own template, run by Jinja in a sandbox.
* `traits`: what a template can show, found by trial.
* `messages`: the client's messages in one shape, rewritten for what the template cannot show.
* `quoting`: a client's text stays text, whatever it spells.
* `formats`: one module for each model family: how it writes a call, how we read and bind it.
* `reading`: the answer so far, and what of it is certain.
* `json_reading`: JSON inside an answer, read while it is written.
* `grammar_text`: grammars for an answer, written as GBNF.
"""

from aivailable.worker.chat.conversation import Conversations
from aivailable.worker.chat.quoting import Controls, Piece
from aivailable.worker.chat.template import ChatTemplate, no_template

__all__ = ["ChatTemplate", "Controls", "Conversations", "Piece", "no_template"]
