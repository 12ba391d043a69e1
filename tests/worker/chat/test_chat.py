"""Chat templates: what real ones need works, what hostile ones try does not."""

from __future__ import annotations

import random
import resource
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="aivailable[engine] is not installed")

from fixtures.chat_templates import FAMILIES
from fixtures.models import smollm2_path

from aivailable.errors import RequestError
from aivailable.gguf import read_header
from aivailable.worker.chat.template import ChatTemplate, checked_variables

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


def test_generation_marks_mean_nothing() -> None:
    assert render("a{% generation %}b{% endgeneration %}c") == "abc"


def test_variables_of_the_request() -> None:
    source = "{{ enable_thinking }}{% if documents %}x{% endif %}"
    assert ChatTemplate(source, "", "").render((USER,), None, {"enable_thinking": False}) == "False"


@pytest.mark.parametrize(
    "variables",
    [
        {"messages": []},
        {"tools": []},
        {"bos_token": "x"},
        {"_x": 1},
        {"a b": 1},
        {"x" * 65: 1},
        {f"x{number}": 1 for number in range(33)},
        {"x": "y" * 20_000},
    ],
)
def test_variables_that_are_not_the_clients_to_give(variables: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        checked_variables(variables)
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
    "round": "{{ 1.5|round(10000000000, 'ceil') }}",
    "slice": "{{ [1]|slice(10000000000)|list }}",
    "batch": "{{ [1]|batch(10000000000, 'x')|list }}",
    "indent": "{{ 'a\nb'|indent(10000000000) }}",
    "named indent": "{{ 'a\nb'|indent(width=10000000000) }}",
    "long indent": "{{ 'a\nb'|indent('x' * 100000) }}",
    "truncate": "{{ 'a b'|truncate(1, end='long') }}",
    "truncate far": "{{ 'a b'|truncate(10000000000) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'a' * 100000) }}",
    "urlize": "{{ 'a'|urlize }}",
    "striptags": "{{ 'a'|striptags }}",
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


def test_filters_within_their_bounds() -> None:
    assert render("{{ 1.25|round(1) }} {{ 1.5|round(method='ceil') }} {{ 7|round }}") == "1.2 2.0 7"
    assert render("{{ 'a\nb'|indent(2) }}") == "a\n  b"
    assert render("{{ 'a\nb'|indent('--', first=True) }}") == "--a\n--b"
    assert render("{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2]|slice(2)|list }}") == (
        "[[1, 2], [3, 0]][[1], [2]]"
    )
    assert render("{{ 'one two three four'|truncate(8, True, '') }}") == "one two "
    assert render("{{ 'aXbX'|replace('X', '-') }}{{ 'aXbX'|replace('X', '-', 1) }}") == "a-b-a-bX"


PARTS = (
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if ",
    "{% endif %}",
    "{{ ",
    " }}",
    "|round(9**9)",
    "|truncate(3)",
    "|indent(99999)",
    "|batch(3)|list",
    "|tojson",
    " * 99999",
    " ~ x",
    "range(99999)",
    "{% set x = ",
    " %}",
    "loop.index",
    "messages[0]",
    "['content']",
    "''",
)
MUTANTS = 1000


@pytest.mark.slow
def test_a_thousand_mutated_templates_end_in_text_or_a_typed_error() -> None:
    dice = random.Random("mutated templates")
    sources = list(FAMILIES.values())
    refused = 0
    for _ in range(MUTANTS):
        source = dice.choice(sources)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(source) + 1)
            end = at + dice.choice([0, 0, 1, 4, 20])
            more = dice.choice([*PARTS, source[at : at + 40], ""])
            source = source[:at] + more + source[end:]
        try:
            assert isinstance(render(source), str)
        except RequestError as error:
            assert error.code == "template_error"  # noqa: PT017
            refused += 1
    assert MUTANTS // 10 < refused < MUTANTS
