"""GBNF, the automaton, masks and bindings, without a model."""

from __future__ import annotations

import re
import time

import pytest
from fixtures.letter_tokens import BYTES_FROM, END, MARKER, LetterTokens
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.wire.generation import Constraint
from aivailable.worker.answer import Grammar
from aivailable.worker.generating.token_tables import TokenTables
from aivailable.worker.grammar import automaton as automaton_module
from aivailable.worker.grammar.automaton import DEAD, START, Automaton
from aivailable.worker.grammar.binding import Binding
from aivailable.worker.grammar.gbnf import read_gbnf
from aivailable.worker.grammar.pattern import read_pattern
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.grammar.vocabulary import Masks, Vocabulary

ARITHMETIC = r"""
# comments, groups over lines, classes, repetition
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]{1,3} ws
ws    ::= [ \t\n]*
"""


def accepts(automaton: Automaton, text: str) -> bool:
    state = automaton.walk(START, text.encode())
    return state != DEAD and automaton.accepts(state)


def test_a_grammar_of_llama_cpp() -> None:
    automaton = Automaton(read_gbnf(ARITHMETIC))
    assert accepts(automaton, "a +(b2 *13 )= c\n")
    assert accepts(automaton, "x=1\ny=2\n")
    for bad in ("", "a+b", "a=1234\n", "(a=1\n"):
        assert not accepts(automaton, bad)


@pytest.mark.parametrize(
    ("grammar", "text", "fits"),
    [
        (r'root ::= "\x41\u00e9\U0001F600"', "Aé😀", True),
        ("root ::= [^a-y]", "z", True),
        ("root ::= [^a-y]", "é", True),
        ("root ::= [^a-y]", "b", False),
        ("root ::= .{2}", "😀é", True),
        ("root ::= [à-ü]+", "éü", True),
        ("root ::= [à-ü]+", "e", False),
        ('root ::= ("a" | "b"){2,3} "c"?', "abac", True),
        ('root ::= ("a" | "b"){2,3} "c"?', "abab", False),
        ('root ::= "a"{3,}', "aa", False),
        ('root ::= "a"{3,}', "aaaaa", True),
        ('root ::= a\na ::= "x" a | ""', "xxxx", True),
        ('root ::= ("a"?)*', "aaa", True),
        ("root ::= [a-]+", "a-", True),
        (r"root ::= [\]\-]", "]", True),
    ],
)
def test_notation(grammar: str, text: str, fits: bool) -> None:
    assert accepts(Automaton(read_gbnf(grammar)), text) == fits


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        "nothing",
        "root ::= other",
        'rood ::= "a"',
        'root ::= "a',
        "root ::= [a",
        'root ::= ("a"',
        'root ::= "a"{9999999}',
        'root ::= "a"{5,2}',
        'root ::= "a"{',
        "root ::= *",
        'root ::= root "a"',
        'root ::= a? root "x" | "y"\na ::= "a"',
        'root ::= a\na ::= b\nb ::= a "x" | "y"',
        'root ::= "a" root',
        'root ::= "\\q"',
        'root ::= "\\U00110000"',
        "root ::= <think>",
        'root ::= "a"\nroot ::= "b"',
        'root ::= "a" )',
        "root ::= " + "(" * 10_000,
        "(" * 300_000,
        'root ::= (("a"{8000}){8000}){8000} b{8000}\nb ::= ' + '("x"{8000})' * 20,
        "root ::= " + " | ".join(f"r{n}" for n in range(5000)),
    ],
)
def test_bad_grammars_are_refused_at_once(grammar: str) -> None:
    began = time.process_time()
    with pytest.raises(GrammarError) as refused:
        Automaton(read_gbnf(grammar))
    assert time.process_time() - began < 5
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300


def test_an_ambiguous_grammar_fails_instead_of_running_on() -> None:
    automaton = Automaton(read_gbnf('root ::= "a" root "b" | "a" root "c" | ""'))
    with pytest.raises(GrammarError, match="ambiguous"):
        automaton.walk(START, b"a" * 200)


def test_work_is_bounded_for_each_token_and_for_life(monkeypatch: pytest.MonkeyPatch) -> None:
    many = " | ".join(f'"{chr(97 + n % 26)}" [a-z]{{0,{n}}} "."' for n in range(100))
    masks, _ = masks_for(f"root ::= {many}", "abcdefgh")
    monkeypatch.setattr(automaton_module, "WORK_MAX", 500)
    with pytest.raises(GrammarError, match="too long"):
        masks.mask(START)
    monkeypatch.undo()
    monkeypatch.setattr(automaton_module, "WORK_TOTAL_MAX", 100)
    with pytest.raises(GrammarError, match="too long"):
        masks.automaton.walk(START, b"zyxwvutsrqponmlkjihgfedcba" * 4)
    masks.automaton.begin()
    assert masks.automaton.worn


def test_deep_nesting_fails_instead_of_growing() -> None:
    automaton = Automaton(read_gbnf('root ::= "(" root ")" | "x"'))
    with pytest.raises(GrammarError, match="deep"):
        automaton.walk(START, b"(" * 10_000)


def test_options_without_end_are_never_entered() -> None:
    automaton = Automaton(read_gbnf('root ::= "a" loop | "b"\nloop ::= "x" loop'))
    assert automaton.walk(START, b"a") == DEAD
    assert accepts(automaton, "b")


REGEXES = st.recursive(
    st.sampled_from(["a", "b", "é", "[ab]", "[^a]", "\\d", ".", "\\w"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(
            lambda two: f"({two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(REGEXES, st.lists(st.text("abé1_", max_size=6), min_size=1, max_size=6))
def test_patterns_mean_what_re_means(pattern: str, texts: list[str]) -> None:
    automaton = Automaton({"root": read_pattern(f"^{pattern}$", "here")})
    for text in texts:
        expected = re.fullmatch(pattern, text, re.ASCII) is not None
        assert accepts(automaton, text) == expected, (pattern, text)


def masks_for(grammar: str, *texts: str) -> tuple[Masks, LetterTokens]:
    tokens = LetterTokens(*texts)
    vocabulary = Vocabulary(tokens.vocabulary, tokens.piece, frozenset({END}))
    return Masks(Automaton(read_gbnf(grammar)), vocabulary), tokens


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text('abé{}":, ', min_size=1, max_size=5), max_size=20),
    st.text('abé{}":, ', max_size=6),
)
def test_a_mask_is_what_each_token_does_by_itself(texts: list[str], before: str) -> None:
    masks, tokens = masks_for('root ::= "{" ("\\"" [^"]* "\\"" ":"? " "?)* "}" .?', *texts)
    state = masks.automaton.walk(START, before.encode())
    if state == DEAD:
        return
    mask = masks.mask(state)
    for token in range(1, tokens.vocabulary):
        piece = tokens.piece(token)
        assert mask[token] == (bool(piece) and masks.automaton.walk(state, piece) != DEAD)
    assert mask[END] == masks.automaton.accepts(state)


def binding_for(grammar: str, *texts: str, triggers: tuple[str, ...] = ()) -> Binding:
    masks, tokens = masks_for(grammar, *texts)
    return Binding(masks, tokens.piece, tokens.is_end, triggers=triggers)


def test_a_binding_follows_the_answer_to_its_end() -> None:
    binding = binding_for('root ::= "yes" "!"?', "yes", "yes!", "no")
    yes, yes_loud, no = 258, 259, 260
    assert [binding.allows(token) for token in (yes, yes_loud, no, END, MARKER)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    binding.take(yes)
    assert binding.allows(END)
    assert not binding.over
    binding.take(BYTES_FROM + ord("!"))
    assert binding.over
    assert binding.mask().nonzero()[0].tolist() == [END]


def test_a_character_may_be_cut_between_tokens() -> None:
    binding = binding_for("root ::= [é-ü]")
    first, second = "ü".encode()
    assert not binding.allows(BYTES_FROM + ord("e"))
    binding.take(BYTES_FROM + first)
    assert not binding.allows(END)
    binding.take(BYTES_FROM + second)
    assert binding.over


def test_a_lazy_grammar_binds_from_its_trigger_on() -> None:
    binding = binding_for(
        'root ::= "<call>" [0-9]+ "</call>"', "say <ca", "ll>", "ll>7", "ll>x", triggers=("<call>",)
    )
    say, rest, good, bad = 258, 259, 260, 261
    assert binding.allows(END)
    binding.take(say)
    assert not binding.bound
    assert binding.allows(rest)
    assert binding.allows(good)
    assert not binding.allows(bad), "what follows the trigger within the token must fit, too"
    binding.take(good)
    assert binding.bound
    assert not binding.allows(END)
    for token in LetterTokens().spell("1</call>"):
        assert binding.allows(token)
        binding.take(token)
    assert binding.over


def test_markers_count_with_their_text() -> None:
    tables = TokenTables(LetterTokens())
    constraint = Constraint("gbnf", 'root ::= "<|call|>" "x"')
    with pytest.raises(GrammarError):
        tables.bind(Grammar(constraint), frozenset()).take(MARKER)
    binding = tables.bind(Grammar(constraint), frozenset({MARKER}))
    assert binding.mask()[MARKER]
    binding.take(MARKER)
    assert binding.mask().nonzero()[0].tolist() == [BYTES_FROM + ord("x")]


def test_a_grammar_that_no_token_can_begin_is_refused() -> None:
    class Few(LetterTokens):
        def piece(self, token: int) -> bytes:
            return b"tok "

    with pytest.raises(GrammarError, match="no token"):
        TokenTables(Few()).bind(Grammar(Constraint("json_object")), frozenset())
