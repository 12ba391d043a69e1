"""Members of one name are shown apart, and a person may type what is shown."""

from __future__ import annotations

from fixtures.states import member

from aivailable.core.state.node_names import choices, meant, shown_name, shown_names
from aivailable.core.state.records import Member

A, B, C = "ab12" + "x" * 48, "cd34" + "x" * 48, "ab12" + "y" * 48


def lab(**names: str) -> dict[str, Member]:
    nodes = {"a": A, "b": B, "c": C}
    return {nodes[key]: member(nodes[key], name=name) for key, name in names.items()}


def test_a_name_of_its_own_stays_as_it_is() -> None:
    members = lab(a="rig1", b="rig2")
    assert shown_names(members) == {A: "rig1", B: "rig2"}
    assert shown_name(members, A) == "rig1"
    assert shown_name(members, C) == C[:8]


def test_equal_names_get_as_much_of_the_id_as_tells_them_apart() -> None:
    assert shown_names(lab(a="vm", b="VM")) == {A: "vm-ab12", B: "VM-cd34"}
    assert shown_names(lab(a="vm", c="vm")) == {A: "vm-ab12x", C: "vm-ab12y"}
    # Nobody is called what another really is.
    assert shown_names(lab(a="vm", b="vm", c="vm-ab12"))[A] == "vm-ab12x"
    assert shown_name(lab(a="vm", b="vm"), B) == "vm-cd34"


def test_what_is_shown_is_understood_and_what_several_are_called_is_not() -> None:
    shown = shown_names(lab(a="vm", b="vm"))
    for wanted in ("vm-ab12", "VM-AB12", A, "ab12"):
        assert meant(shown, wanted) == (A,), wanted
    assert set(meant(shown, "vm")) == {A, B}
    assert meant(shown, "ab1") == ()
    assert meant(shown, "vm-") == ()
    assert choices(shown, (A, B)) == f"vm-ab12 ({A[:8]}), vm-cd34 ({B[:8]})"


def test_a_name_with_a_dash_is_a_name() -> None:
    shown = shown_names(lab(a="lab-pc", b="lab"))
    assert meant(shown, "lab") == (B,)
    assert meant(shown, "lab-pc") == (A,)
