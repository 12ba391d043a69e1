"""The join key: what is printed can be read back, a slip is noticed, proofs fit one handshake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.config import KEY_BITS_MIN, key_bits
from aivailable.peer.joining.join_key import (
    GROUP_CHARS,
    GROUPS,
    JOIN_KEY_BYTES,
    PREFIX,
    JoinKey,
    make_join_key,
)
from aivailable.wire.join import key_transcript

RANDOM = st.binary(min_size=JOIN_KEY_BYTES, max_size=JOIN_KEY_BYTES)
PRINTED = make_join_key(bytes(range(JOIN_KEY_BYTES)))
TRANSCRIPT = key_transcript(bytes(32), bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32, "c")


@given(RANDOM)
def test_a_printed_key_is_read_back_and_long_enough(random_bytes: bytes) -> None:
    text = make_join_key(random_bytes)
    assert GROUPS * GROUP_CHARS * 5 >= KEY_BITS_MIN
    assert key_bits(text) >= KEY_BITS_MIN
    assert JoinKey.of(text) == JoinKey.of(f" {text.upper()}\n")


def test_the_format_stays_as_people_have_it_written_down() -> None:
    assert PRINTED == "join-aaaqe-ayeau-daoca-jbifq-ydiob-7mhyf"


@given(RANDOM, st.data())
def test_one_wrong_character_is_a_typo_not_another_key(
    random_bytes: bytes, data: st.DataObject
) -> None:
    text = make_join_key(random_bytes)
    place = data.draw(st.integers(len(PREFIX) + 1, len(text) - 1).filter(lambda i: text[i] != "-"))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567890-"))
    if other == text[place]:
        return
    with pytest.raises(ValueError, match="mistyped"):
        JoinKey.of(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("text", ["join-", PRINTED[:-1], PRINTED[:-6], PRINTED + "a"])
def test_an_incomplete_key_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        JoinKey.of(text)


def test_a_pattern_is_no_key() -> None:
    with pytest.raises(ValueError, match="pattern"):
        JoinKey.of("0101" * 16)


def test_only_the_exact_number_of_random_bytes_makes_a_key() -> None:
    with pytest.raises(ValueError, match="16"):
        make_join_key(b"short")


def test_a_key_never_shows_its_secret() -> None:
    key = JoinKey.of(PRINTED)
    assert repr(key) == "JoinKey()"
    assert PRINTED.encode() not in key._secret


def test_a_proof_fits_its_key_its_direction_and_its_handshake_only() -> None:
    key, other = JoinKey.of(PRINTED), JoinKey.of("f00dbeef" * 4 + "0123")
    client, server = key.client_proof(TRANSCRIPT), key.server_proof(TRANSCRIPT)
    assert key.is_client_proof(client, TRANSCRIPT)
    assert key.is_server_proof(server, TRANSCRIPT)
    assert not key.is_server_proof(client, TRANSCRIPT)
    assert not key.is_client_proof(server, TRANSCRIPT)
    assert not other.is_client_proof(client, TRANSCRIPT)
    assert not key.is_client_proof(client[:-1], TRANSCRIPT)
    assert not key.is_client_proof(b"", TRANSCRIPT)


@pytest.mark.parametrize("changed", range(5))
def test_each_part_of_the_handshake_is_in_the_proof(changed: int) -> None:
    parts: list[bytes | str] = [bytes([number]) * 32 for number in range(4)] + ["c"]
    before = key_transcript(*parts)  # type: ignore[arg-type]
    parts[changed] = "d" if changed == 4 else bytes([9]) * 32
    key = JoinKey.of(PRINTED)
    assert not key.is_client_proof(key.client_proof(before), key_transcript(*parts))  # type: ignore[arg-type]
