"""Reading GGUF headers: facts of good files, and a named error for every bad one."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fixtures.gguf_writer import TINY, TINY_TENSORS, gguf_bytes
from fixtures.models import smollm2_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aivailable.core.state.records import Model
from aivailable.errors import GgufError
from aivailable.gguf import read_header
from aivailable.gguf.header import FIRST_READ_BYTES, HEADER_MAX_BYTES
from aivailable.gguf.reader import TEXTS_SKIPPED_MAX, Reader
from aivailable.wire.schema import pack, unpack


def write(folder: Path, data: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_facts_of_a_tiny_file(tmp_path: Path, version: int) -> None:
    header = read_header(write(tmp_path, gguf_bytes(version=version)))
    facts = header.facts
    assert (facts.architecture, facts.name, facts.quantization) == ("llama", "tiny", "Q4_0")
    assert (facts.layers, facts.embedding, facts.vocab, facts.context_train) == (4, 64, 100, 512)
    assert (facts.heads_kv, facts.key_length, facts.value_length) == ((2, 2, 2, 2), 16, 16)
    assert facts.weights_bytes == 64 * 100 // 32 * 18 + 64 * 4
    assert facts.parameters == 6464
    assert facts.has_chat_template
    assert header.chat_template == TINY["tokenizer.chat_template"]


def test_facts_travel_with_the_catalogue(tmp_path: Path) -> None:
    facts = read_header(write(tmp_path, gguf_bytes())).facts
    model = Model("d" * 64, "tiny", 1, "a path", facts)
    assert unpack(Model, pack(model)).facts == facts


def test_facts_of_smollm2() -> None:
    facts = read_header(smollm2_path()).facts
    assert (facts.layers, facts.embedding, facts.vocab) == (30, 576, 49152)
    assert (set(facts.heads_kv), facts.key_length, facts.heads) == ({3}, 64, 9)
    assert (facts.quantization, facts.has_chat_template) == ("Q4_1", True)
    assert facts.weights_bytes == 96_576_768


def test_sliding_layers_of_gemma3(tmp_path: Path) -> None:
    values = {
        key.replace("llama.", "gemma3."): "gemma3" if key == "general.architecture" else value
        for key, value in TINY.items()
    }
    values |= {"gemma3.block_count": 7, "gemma3.attention.sliding_window": 512}
    facts = read_header(write(tmp_path, gguf_bytes(values))).facts
    assert facts.sliding_window == 512
    assert facts.sliding_layers == (True, True, True, True, True, False, True)


def test_heads_by_layer_and_multi_head_latent_attention(tmp_path: Path) -> None:
    by_layer = gguf_bytes(llama__attention__head_count_kv=[2, 0, 4, 1])
    assert read_header(write(tmp_path, by_layer)).facts.heads_kv == (2, 0, 4, 1)
    latent = gguf_bytes(llama__attention__kv_lora_rank=512, llama__rope__dimension_count=64)
    facts = read_header(write(tmp_path, latent)).facts
    assert (facts.heads_kv, facts.key_length, facts.value_length) == ((1,) * 4, 576, 0)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"llama__block_count": 0x7FFFFFFF}, "block_count"),
    "no layers": ({"llama__block_count": None}, "block_count"),
    "kv heads": ({"llama__attention__head_count_kv": 100_000}, "head_count_kv"),
    "zero kv heads": ({"llama__attention__head_count_kv": 0}, "head_count_kv"),
    "uneven heads": ({"llama__attention__head_count_kv": 3}, "share"),
    "few layers": ({"llama__attention__head_count_kv": [2, 2]}, "2 entries"),
    "embedding": ({"llama__embedding_length": 128}, "token embeddings"),
    "text for number": ({"llama__context_length": "512"}, "context_length"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "rms_epsilon is -1.0"),
    "no epsilon": ({"llama__attention__layer_norm_epsilon": math.nan}, "norm_epsilon is nan"),
    "text epsilon": ({"llama__attention__layer_norm_epsilon": "x"}, "norm_epsilon is 'x'"),
    "alignment": ({"general__alignment": 33}, "alignment"),
    "split": ({"split__count": 3}, "split"),
    "architecture": ({"general__architecture": 7}, "architecture"),
    "template": ({"tokenizer__chat_template": "x" * 300_000}, "chat_template"),
    "version": ({"version": 99}, "version 99"),
    "no tensors": ({"tensors": {}}, "language model"),
    "row": ({"tensors": {"token_embd.weight": ((60, 100), 2)}}, "blocks"),
    "format": ({"tensors": {"token_embd.weight": ((64, 100), 77)}}, "number format 77"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_headers_are_named(tmp_path: Path, name: str) -> None:
    changed, expected = WRONG[name]
    path = write(tmp_path, gguf_bytes(**changed))
    with pytest.raises(GgufError, match=expected) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"GGUF", "too few"),
        (b"\x00" * 4096, "not a GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1), "plausible"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1 << 60), "plausible"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 1, 1, 1 << 62), "at byte 32"),
    ],
)
def test_rubbish_is_named(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(GgufError, match=expected):
        read_header(write(tmp_path, data))


def test_overlapping_tensors_are_named(tmp_path: Path) -> None:
    data = gguf_bytes()
    name = data.index(b"output_norm.weight") + len("output_norm.weight")
    offset = name + 4 + 8 + 4
    wrong = data[:offset] + struct.pack("<Q", 0) + data[offset + 8 :]
    with pytest.raises(GgufError, match=r"output_norm.weight' begins at data byte 0, not 3616"):
        read_header(write(tmp_path, wrong))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="cannot be read"):
        read_header(tmp_path / "nope.gguf")
    with pytest.raises(GgufError, match="no regular file"):
        read_header(tmp_path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "m.gguf"
    os.mkfifo(pipe)
    with pytest.raises(GgufError, match=r"m\.gguf: this is no regular file"):
        read_header(pipe)
    with pytest.raises(GgufError, match=r"no regular file"):
        read_header(Path("/dev/zero"))


def sparse(folder: Path, head: bytes, size_bytes: int) -> Path:
    """A file that takes no room on the disk."""
    path = write(folder, head)
    os.truncate(path, size_bytes)
    return path


def strings_head(texts: int) -> bytes:
    """A header whose first value is an array of `texts` empty texts."""
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + struct.pack("<IQ", 8, texts)


def test_a_header_of_empty_texts_is_refused_by_their_number(tmp_path: Path) -> None:
    texts = TEXTS_SKIPPED_MAX + 1
    with pytest.raises(GgufError, match="texts in arrays"):
        read_header(sparse(tmp_path, strings_head(texts), 2 << 30))


def test_many_short_arrays_of_texts_count_together(tmp_path: Path) -> None:
    many, each = 40, TEXTS_SKIPPED_MAX // 39
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, many)
    for number in range(many):
        head += struct.pack("<Q", 2) + f"{number:02}".encode() + struct.pack("<I", 9)
        head += struct.pack("<IQ", 8, each) + bytes(8 * each)
    with pytest.raises(GgufError, match="texts in arrays"):
        read_header(write(tmp_path, head))


def test_the_texts_that_are_kept_count_together(tmp_path: Path) -> None:
    piece = 1 << 20
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 100)
    for number in range(100):
        head += struct.pack("<Q", 2) + f"{number:02}".encode()
        head += struct.pack("<IQ", 8, piece) + bytes(piece)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError, match="bytes of texts"):
            read_header(write(tmp_path, head))
        # The pieces that were read, the larger one beside the smaller, and the texts.
        assert tracemalloc.get_traced_memory()[1] < 2 * HEADER_MAX_BYTES + len(head)
    finally:
        tracemalloc.stop()


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    """Numbers are not counted one by one: arrays of eight million of them."""
    count = 8 << 20
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1000)
    head += struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 10, count)
    path = sparse(tmp_path, head, 2 << 30)
    with pytest.raises(GgufError, match="longer than 32 MiB"):
        read_header(path)


@pytest.mark.parametrize("pad", [FIRST_READ_BYTES - 200, FIRST_READ_BYTES, 5 * FIRST_READ_BYTES])
def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path, pad: int) -> None:
    tokens = [f"t{number}" for number in range(100)]
    tokens[7] = "x" * pad
    facts = read_header(write(tmp_path, gguf_bytes(tokenizer__ggml__tokens=tokens))).facts
    assert facts.vocab == 100


def test_every_truncation_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    whole = gguf_bytes(tensors={**TINY_TENSORS, "big": ((1024, 1024), 0)})
    with pytest.raises(GgufError, match=r"truncated: 3 MiB of 5 MiB .*copy it again"):
        read_header(write(tmp_path, whole[: 3 << 20]))
    small = gguf_bytes()
    for length in range(0, len(small), 7):
        with pytest.raises(GgufError):
            read_header(write(tmp_path, small[:length]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 12), st.binary(min_size=1, max_size=8)), max_size=6
    )
)
def test_mutated_bytes_give_facts_or_a_named_error(
    tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    data = bytearray(gguf_bytes())
    for at, patch in edits:
        at %= len(data)
        data[at : at + len(patch)] = patch
    try:
        header = read_header(write(tmp_path, bytes(data)))
    except GgufError:
        return
    assert 1 <= header.facts.layers <= 1024
    assert header.facts.weights_bytes <= header.size_bytes


@given(st.binary(max_size=200))
def test_arbitrary_bytes_after_the_magic_never_escape(data: bytes) -> None:
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + data
    with contextlib.suppress(GgufError):
        assert len(Reader(raw, "noise").structure().tensors) == 1
