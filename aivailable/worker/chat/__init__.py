"""Chats: the model's own template in a sandbox, its family's format, the answer read back.

```
template   Jinja in a sandbox            traits    what a template can show, by trial
messages   one shape, and rewriting      formats   one module a family: write, read, bind
reading    text so far → what is certain json_reading · grammar_text
conversation   a request → prompt, parser, grammar
```
"""

from aivailable.worker.chat.conversation import Conversations
from aivailable.worker.chat.template import ChatTemplate, no_template

__all__ = ["ChatTemplate", "Conversations", "no_template"]
