"""The chat formats of the model families, and which one a template belongs to.

Owns: the choice. A template is known by the markers in its source, the most telling first, since
some families took over others' words.

* `base`: what a format is.
* `marked_json`: calls as JSON between markers.
* `deepseek`: DeepSeek.
* `generic`: models that know no tools.
* `harmony`: gpt-oss.
* `llama3`: Llama 3.1 to 3.3.
* `mistral`: Mistral.
* `qwen_coder`: Qwen3-Coder.
"""

from __future__ import annotations

from typing import Final

from aivailable.worker.chat.formats.base import Format, Thinking, Tool, ToolCall
from aivailable.worker.chat.formats.deepseek import SEPARATOR, DeepSeek, DeepSeekFenced
from aivailable.worker.chat.formats.generic import Generic
from aivailable.worker.chat.formats.harmony import Harmony
from aivailable.worker.chat.formats.llama3 import Llama3
from aivailable.worker.chat.formats.marked_json import CommandR7B, Granite, Hermes, Phi4Mini
from aivailable.worker.chat.formats.mistral import Mistral, MistralList
from aivailable.worker.chat.formats.qwen_coder import QwenCoder

__all__ = ["Format", "Thinking", "Tool", "ToolCall", "format_of", "thinking_of"]

_THINKING: Final = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<seed:think>", "</seed:think>"),
)


def format_of(source: str) -> Format:
    """The format of the family that this template belongs to; Generic when it is none we know."""
    if "<|channel|>" in source and "<|message|>" in source:
        return Harmony()
    if "<｜tool▁call" in source:
        fenced = "```json" in source or SEPARATOR not in source
        return DeepSeekFenced() if fenced else DeepSeek()
    if "<|START_ACTION|>" in source:
        return CommandR7B()
    if "[TOOL_CALLS]" in source:
        return Mistral() if "[ARGS]" in source else MistralList()
    if "<function=" in source and "<parameter=" in source:
        return QwenCoder()
    if "<|tool_call|>" in source or "<|tool|>" in source:
        return Phi4Mini() if "<|/tool|>" in source or "<|/tool_call|>" in source else Granite()
    if "<tool_call>" in source:
        return Hermes()
    if "<|start_header_id|>" in source and ("ipython" in source or "<|python_tag|>" in source):
        return Llama3()
    return Generic()


def thinking_of(source: str) -> tuple[Thinking, bool]:
    """The tags around reasoning, and whether the template mentions them. A model whose template
    does not (distilled models often keep a plain one) is still read with the usual tags."""
    for thinking in _THINKING:
        if thinking.closing in source or thinking.opening in source:
            return thinking, True
    return _THINKING[0], False
