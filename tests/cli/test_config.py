"""Settings of a node: grammar, precedence, and every problem at once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable import config
from aivailable.config import LIST_ITEMS_MAX, Config, DeviceSpec
from aivailable.errors import ConfigError

GIB = 2**30


def load(home: Path, environment: dict[str, str] | None = None, **flags: Any) -> Config:
    return config.load(flags, environment or {}, home)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4GiB", 4 * GIB), ("512 MiB", 2**29), ("1.5TiB", 3 * 2**39), ("1KiB", 1024), ("7B", 7)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert config.parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "4", "GiB", "4GB", "4gib", "-1GiB", "0GiB", "1e9GiB", "4 4GiB"]
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        config.parse_size_bytes(text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("15m", 900), ("90s", 90), ("90", 90), ("1h30m", 5400), ("2d", 172_800), ("0", 0), (60, 60)],
)
def test_durations(text: str | int, duration_s: int) -> None:
    assert config.parse_duration_s(text) == duration_s


@pytest.mark.parametrize("text", ["", "m", "15 m", "-5", "1.5h", "fifteen", "31d", "30m1h"])
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        config.parse_duration_s(text)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (
        config.parse_size_bytes,
        config.parse_duration_s,
        config.parse_devices,
        config.parse_seed,
    ):
        with contextlib.suppress(ValueError):
            parse(text)


def test_devices() -> None:
    gtx = DeviceSpec("sim", "GTX1080Ti", 11 * GIB)
    rx = DeviceSpec("sim", "RX580", 8 * GIB)
    cpu = DeviceSpec("cpu", "CPU", 4 * GIB)
    assert config.parse_devices("sim:GTX1080Ti:11GiB,RX580:8GiB") == (gtx, rx)
    assert config.parse_devices("sim:RX580:8GiB,cpu:4GiB") == (rx, cpu)
    assert config.parse_devices(["cpu:4GiB", "sim:RX580:8GiB"]) == (cpu, rx)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpu:4GiB", "'gpu:4GiB' is not a device"),
        ("cpu:4", "'4' is not a size"),
        ("cpu", "is not a device"),
        ("sim:8GiB", "is not a device"),
        ("sim::8GiB", "is not a device name"),
        ("cpu:1GiB," * 65 + "cpu:1GiB", "66 devices; at most 64"),
    ],
)
def test_what_is_not_a_device(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config.parse_devices(text)


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("rig1", ("rig1", 8421)),
        ("192.168.1.7:9000", ("192.168.1.7", 9000)),
        ("[fe80::1]:9000", ("fe80::1", 9000)),
        ("fe80::1", ("fe80::1", 8421)),
    ],
)
def test_seeds(text: str, seed: tuple[str, int]) -> None:
    assert config.parse_seed(text) == seed


def test_defaults(tmp_path: Path) -> None:
    made = load(tmp_path)
    assert made.home == tmp_path
    assert made.models_dir == tmp_path / "models"
    assert (made.cluster, made.port, made.link_port) == ("default", 8420, 8421)
    assert (made.join_window_s, made.require_auth, made.devices) == (900, True, ())
    assert made.name
    assert load(tmp_path, port=0).link_port == 0


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'cluster = "file"\nname = "file"\nport = 1000\njoin_window = "1h"\n'
        'devices = ["cpu:1GiB"]\nauth = false\n'
    )
    environment = {"AIVAILABLE_NAME": "environment", "AIVAILABLE_PORT": "2000", "PATH": "x"}
    made = load(tmp_path, environment, port=3000)
    assert (made.cluster, made.name, made.port) == ("file", "environment", 3000)
    assert (made.join_window_s, made.require_auth) == (3600, False)
    assert made.devices == (DeviceSpec("cpu", "CPU", GIB),)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('clster = "lab"\nport = "many"\n')
    environment = {
        "AIVAILABLE_DEVICE": "cpu:1GiB",
        "AIVAILABLE_JOIN_WINDOW": "soon",
        "AIVAILABLE_TEST_ONLY": "of another program",
    }
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, environment, devices=["cpu:4GB"], key="short", tls_key="/nowhere")
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7
    assert "clster is unknown; did you mean cluster?" in problems
    assert "config.toml: port: 'many' must be a whole number" in problems
    assert "AIVAILABLE_DEVICE is unknown; did you mean AIVAILABLE_DEVICES?" in problems
    assert "AIVAILABLE_JOIN_WINDOW: 'soon' is not a duration" in problems
    assert "--devices: '4GB': unknown unit 'GB'" in problems
    assert "--key: a join key needs at least 100 random bits; this one has at most 25" in problems
    assert "--tls-key: no file /nowhere" in problems


def test_seeds_are_limited(tmp_path: Path) -> None:
    most = [f"10.0.0.{number}" for number in range(LIST_ITEMS_MAX)]
    assert len(load(tmp_path, {}, seeds=most).seeds) == LIST_ITEMS_MAX
    with pytest.raises(ConfigError, match=f"{LIST_ITEMS_MAX + 1} items; at most {LIST_ITEMS_MAX}"):
        load(tmp_path, {}, seeds=[*most, "10.0.1.1"])


def test_a_join_key_needs_a_hundred_bits(tmp_path: Path) -> None:
    assert load(tmp_path, key="0123456789abcdef012345678").key is not None
    for short in ("0123456789abcdef01234567", "7" * 30, "abcdefghijklmnopqrs"):
        with pytest.raises(ConfigError, match="100 random bits"):
            load(tmp_path, key=short)


@pytest.mark.parametrize("text", ["port = ", "\xff", "x" * 70_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load(tmp_path)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ConfigError, match="is not a directory; choose another with --home"):
        load(tmp_path / "home")


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("")
    with pytest.raises(ConfigError, match="belong together"):
        load(tmp_path, tls_certificate=str(tmp_path / "cert.pem"))


def test_home_comes_from_the_environment() -> None:
    assert config.default_home({"AIVAILABLE_HOME": "/srv/ai"}) == Path("/srv/ai")
    assert "aivailable" in str(config.default_home({}))


def test_who_may_ask_is_set_by_addresses_names_and_origins(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'trusted_proxies = ["127.0.0.1", "10.0.0.7/8", "::ffff:10.9.0.0/112"]\n'
        'hosts = ["AI.lab.", "*.rigs"]\norigins = ["https://Chat.lab/", "null", "file://"]\n'
    )
    made = load(tmp_path)
    assert [str(one) for one in made.trusted_proxies] == [
        *("127.0.0.1/32", "10.0.0.0/8", "10.9.0.0/16"),
    ]
    assert made.hosts == {"ai.lab", "*.rigs"}
    assert made.origins == {"https://chat.lab", "null", "file://"}
    environment = {"AIVAILABLE_TRUSTED_PROXIES": "10.0.0.1, ::1"}
    assert len(load(tmp_path, environment).trusted_proxies) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trusted_proxies", "proxy.lab"),
        ("hosts", "https://ai.lab"),
        ("hosts", "ai.lab:8420"),
        ("origins", "chat.lab"),
        ("origins", "https://chat.lab/page"),
    ],
)
def test_what_cannot_say_who_may_ask_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name.replace("trusted_proxies", "trusted-proxy")):
        load(tmp_path, **{name: value})
