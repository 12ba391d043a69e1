"""The options that name files: what they say, and the same with other paths."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.gguf.companion_options import (
    LORA,
    files_named,
    lora_items,
    lora_problem,
    with_paths,
)

paths = st.text("ab/ ,:.1", min_size=1, max_size=8).map(lambda text: f"/{text}x")
scales = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("option", "items"),
    [
        ("", ()),
        (" , ", ()),
        ("a.gguf", (("a.gguf", 1.0),)),
        ("a.gguf:0.5, b.gguf:2", (("a.gguf", 0.5), ("b.gguf", 2.0))),
        ("c:/a.gguf", (("c:/a.gguf", 1.0),)),
        (r"my\, own.gguf:-1", (("my, own.gguf", -1.0),)),
    ],
)
def test_what_an_option_says(option: str, items: tuple[tuple[str, float], ...]) -> None:
    assert lora_items(option) == items


@given(st.lists(st.tuples(paths, scales), min_size=1, max_size=4))
def test_other_paths_are_read_back_with_the_same_scales(placed: list[tuple[str, float]]) -> None:
    option = ",".join(f"{index}.gguf:{scale}" for index, (_, scale) in enumerate(placed))
    options = {LORA: option, "projector": "p.gguf", "kv_type": "f16"}
    places = {(LORA, f"{index}.gguf"): path for index, (path, _) in enumerate(placed)}
    changed = with_paths(options, {**places, ("projector", "p.gguf"): "/there/p"})
    assert lora_items(changed[LORA]) == tuple(placed)
    assert (changed["projector"], changed["kv_type"]) == ("/there/p", "f16")
    named = [path for option, path in files_named(changed) if option == LORA]
    assert named == list(dict.fromkeys(path for path, _ in placed))


@given(st.floats())
def test_a_scale_out_of_reason_is_a_problem(scale: float) -> None:
    assert bool(lora_problem(f"a.gguf:{scale}")) is not (
        math.isfinite(scale) and abs(scale) <= 100.0
    )
