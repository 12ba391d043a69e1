"""Chat templates: what real ones need works, what hostile ones try does not."""

from __future__ import annotations

import resource
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="aivailable[engine] is not installed")

from fixtures.models import smollm2_path

from aivailable.errors import RequestError
from aivailable.gguf import read_header
from aivailable.worker.chat import ChatTemplate

USER = {"role": "user", "content": "hi"}


def render(source: str, *messages: dict[str, Any], **more: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages or (USER,), **more)


def test_smollm2s_own_template() -> None:
    source = read_header(smollm2_path()).chat_template
    assert source is not None
    system = {"role": "system", "content": "Be brief."}
    assert render(source, system, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_templates_use() -> None:
    assert render("{{ bos_token }}{{ messages[0].content|trim }}{{ eos_token }}") == "<s>hi</s>"
    assert render("{% if tools %}{{ tools[0]|tojson }}{% endif %}", tools=[{"a": "<é>"}]) == (
        '{"a": "<é>"}'
    )
    assert (
        render(
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}",
            USER,
            USER,
        )
        == "x"
    )
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{{ 'a,b'.split(',')[1] }}{{ '%d' }}{{ 2 * 3 }}{{ '-' * 3 }}") == "b%d6---"
    assert render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}") == "2"
    assert render("{{ add_generation_prompt }}") == "True"


def test_content_parts_are_joined_and_images_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "user", "content": parts}
    assert render("{{ messages[0].content }}", message) == "ab"
    parts.append({"type": "image_url", "text": ""})
    with pytest.raises(RequestError) as caught:
        render("{{ messages[0].content }}", message)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    "message", [{}, {"role": 7, "content": "x"}, {"role": "user", "content": 7}]
)
def test_messages_of_a_wrong_shape(message: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        render("x", message)
    assert (caught.value.code, caught.value.status) == ("invalid_request", 400)


ATTACKS = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "mutate": "{{ messages.append(1) }}",
    "exception": "{{ raise_exception('roles must alternate') }}",
    "undefined": "{{ nothing.there }}",
    "syntax": "{% for %}",
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "product": "{{ 'a' * 10000000000 }}",
    "list product": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** 10000000 }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "width": "{{ 'a'|center(10000000000) }}",
    "method width": "{{ 'a'.ljust(10000000000) }}",
    "doubling": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "replace": "{% set ns = namespace(x='a' * 1000) %}{% for i in range(9) %}"
    "{% set ns.x = ns.x.replace('a', 'a' * 1000) %}{% endfor %}",
    "range": "{{ range(10000000000)|list }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "filter": "{{ 'a'|nosuchfilter }}",
    "division": "{{ 1 / 0 }}",
    "types": "{{ 'a' + 1 }}",
    "product types": "{{ {} * 3 }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_by_name(name: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(RequestError) as caught:
        render(ATTACKS[name])
    assert (caught.value.code, caught.value.status) == ("template_error", 400)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    if name == "exception":
        assert "roles must alternate" in str(caught.value)
