"""The settings of one node: where they come from, what they may be, and which win.

Owns the grammar of sizes, durations, devices, seeds, and the precedence defaults < config.toml in
home < AIVAILABLE_* < flags. Reads the environment it is handed and one file; must not create, write
or connect anything. `peer.app` receives the finished `Config`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aivailable.advice import INVITE
from aivailable.errors import ConfigError

API_PORT_DEFAULT = 8420
LINK_PORT_DEFAULT = 8421
JOIN_WINDOW_DEFAULT_S = 900
DURATION_MAX_S = 30 * 24 * 3600
DEVICES_MAX = 64
LIST_ITEMS_MAX = 64
IPV4_MAPPED_BITS = 96
"""Of an IPv6 address that spells an IPv4 one: what stands before it."""
CONFIG_FILE_MAX_BYTES = 64 * 1024
KEY_BITS_MIN = 100
LOG_LEVELS = ("debug", "info", "warning", "error")
CONFIG_FILE = "config.toml"
ENV_PREFIX = "AIVAILABLE_"
ENV_OF_OTHERS = frozenset({"AIVAILABLE_HOME", "AIVAILABLE_URL", "AIVAILABLE_API_KEY"})
"""Read elsewhere (here for the home, in `cli` for the rest), so not unknown settings."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NO_HOME = (
    "this user has no home directory: set AIVAILABLE_HOME to a folder of its own,"
    " like AIVAILABLE_HOME=/var/lib/aivailable"
)
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")
_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/?#*@,]*")
_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device that exists only because the operator asked for it."""

    kind: str
    """cpu | sim"""
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Config:
    """Everything one node is told. Cluster-wide settings are not here: they are replicated."""

    home: Path
    models_dir: Path
    name: str
    cluster: str = "default"
    seeds: tuple[tuple[str, int], ...] = ()
    """(host or IP literal, link port): where to look besides mDNS."""
    key: str | None = None
    """Join key, at least KEY_BITS_MIN bits; None = only the join window admits."""
    join_window_s: int = JOIN_WINDOW_DEFAULT_S
    """How long a cluster founded here admits strangers; 0 = never."""
    devices: tuple[DeviceSpec, ...] = ()
    """Explicit cpu and sim devices, in order."""
    port: int = API_PORT_DEFAULT
    """API port; links listen on the next one. 0 = both ephemeral."""
    bind: tuple[str, ...] = ("0.0.0.0", "::")
    """IP literals that API and links listen on."""
    interfaces: tuple[str, ...] | None = None
    """IP literals or interface names for mDNS; None = all."""
    require_auth: bool = True
    trusted_proxies: tuple[Network, ...] = ()
    """Whose forwarding headers are believed."""
    hosts: frozenset[str] = frozenset()
    """Further names of this node, in lower case; `*.lab` is every name below `lab`."""
    origins: frozenset[str] = frozenset()
    """Web pages that may ask without a key, in lower case: SCHEME://HOST[:PORT], or `null`."""
    log_level: str = "info"
    tls_certificate: Path | None = None
    """PEM files for the API; both or neither."""
    tls_key: Path | None = None

    @property
    def link_port(self) -> int:
        return self.port + 1 if self.port else 0


def parse_size_bytes(text: str) -> int:
    """Bytes of `4GiB`, `512 MiB`, `1.5TiB`. Raises ValueError that names the fault."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number and a unit, like 4GiB")
    number, unit = match.groups()
    if unit not in _UNITS:
        raise ValueError(
            f"{text!r}: unknown unit {unit!r}; use one of {', '.join(list(_UNITS)[1:])}"
        )
    size_bytes = int(float(number) * _UNITS[unit])
    if size_bytes <= 0:
        raise ValueError(f"{text!r}: a size must be more than zero")
    return size_bytes


def parse_duration_s(value: str | int) -> int:
    """Whole seconds of `15m`, `90s`, `1h30m`, `2d`, or a plain number. Raises ValueError."""
    text = str(value).strip()
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 15m, 1h30m or 0")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    duration_s = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if duration_s > DURATION_MAX_S:
        raise ValueError(f"{text!r} is longer than {DURATION_MAX_S // 86400} days")
    return duration_s


def parse_devices(value: str | Sequence[str]) -> tuple[DeviceSpec, ...]:
    """Devices of `cpu:4GiB` or `sim:GTX1080Ti:11GiB,RX580:8GiB`, in order.

    Within one text an item without a kind takes the kind before it. Raises ValueError.
    """
    texts = [value] if isinstance(value, str) else list(value)
    found: list[DeviceSpec] = []
    for text in texts:
        kind = ""
        for item in text.split(","):
            parts = [part.strip() for part in item.split(":")]
            if parts[0] in ("cpu", "sim"):
                kind, parts = parts[0], parts[1:]
            found.append(_device(kind, parts, item.strip()))
    if len(found) > DEVICES_MAX:
        raise ValueError(f"{len(found)} devices; at most {DEVICES_MAX}")
    return tuple(found)


def _device(kind: str, parts: list[str], item: str) -> DeviceSpec:
    if kind == "cpu" and len(parts) == 1:
        return DeviceSpec("cpu", "CPU", parse_size_bytes(parts[0]))
    if kind == "sim" and len(parts) == 2:
        if _DEVICE_NAME.fullmatch(parts[0]) is None:
            raise ValueError(f"{item!r}: {parts[0]!r} is not a device name")
        return DeviceSpec("sim", parts[0], parse_size_bytes(parts[1]))
    raise ValueError(f"{item!r} is not a device; write cpu:SIZE or sim:NAME:SIZE, like cpu:4GiB")


def parse_seed(text: str) -> tuple[str, int]:
    """(host, link port) of `host`, `host:port`, `[v6]:port` or a bare IPv6 literal."""
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address; write [v6]:port")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or any(char.isspace() or char in "/@" for char in host):
        raise ValueError(f"{text!r} is not an address; write host or host:port")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: {port!r} is not a port")
    return host, int(port) if port else LINK_PORT_DEFAULT


def key_bits(key: str) -> float:
    """Upper bound of a key's entropy in bits: length × bits per character of its alphabet."""
    if re.fullmatch(r"[0-9]*", key):
        return 3.32 * len(key)
    if re.fullmatch(r"[0-9a-f]*|[0-9A-F]*", key):
        return 4.0 * len(key)
    if re.fullmatch(r"[0-9a-z-]*|[0-9A-Z-]*", key):
        return 5.0 * len(key.replace("-", ""))
    return 6.0 * len(key)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} must be text")
    return value


def _name(value: Any) -> str:
    text = _text(value)
    if _NAME.fullmatch(text) is None:
        raise ValueError(f"{text!r}: use 1 to 63 of letters, digits, space, '.', '_' and '-'")
    return text


def _texts(value: Any) -> list[str]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{value!r} must be text or a list of texts")
    if len(items) > LIST_ITEMS_MAX:
        raise ValueError(f"{len(items)} items; at most {LIST_ITEMS_MAX}")
    return [item.strip() for item in items if item.strip()]


def _integer(value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{value!r} must be a whole number from {low} to {high}")
    return value


def _boolean(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} must be true or false")
    return value


def _duration(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a duration; write it like 15m")
    return parse_duration_s(value)


def _devices(value: Any) -> tuple[DeviceSpec, ...]:
    if isinstance(value, str):
        return parse_devices(value) if value.strip() else ()
    return parse_devices(_texts(value))


def _bind(value: Any) -> tuple[str, ...]:
    addresses = _texts(value)
    if not addresses:
        raise ValueError("needs at least one address")
    return tuple(str(ipaddress.ip_address(address)) for address in addresses)


def _networks(value: Any) -> tuple[Network, ...]:
    networks = [ipaddress.ip_network(text, strict=False) for text in _texts(value)]
    return tuple(_plain(network) for network in networks)


def _plain(network: Network) -> Network:
    """IPv4 that is spelt as IPv6, as IPv4: addresses are compared so."""
    mapped = network.network_address
    if isinstance(mapped, ipaddress.IPv4Address) or mapped.ipv4_mapped is None:
        return network
    return ipaddress.ip_network((mapped.ipv4_mapped, network.prefixlen - IPV4_MAPPED_BITS))


def _hosts(value: Any) -> frozenset[str]:
    names = [text.lower().removesuffix(".") for text in _texts(value)]
    for name in names:
        if _HOST.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a host name; write it without scheme and port")
    return frozenset(names)


def _origins(value: Any) -> frozenset[str]:
    origins = [
        text if text.endswith("://") else text.rstrip("/") for text in map(str.lower, _texts(value))
    ]
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise ValueError(f"{origin!r} is not an origin; write it like https://app.example")
    return frozenset(origins)


def _key(value: Any) -> str | None:
    text = _text(value)
    if not text:
        return None
    if key_bits(text) < KEY_BITS_MIN:
        raise ValueError(
            f"a join key needs at least {KEY_BITS_MIN} random bits; this one has at most "
            f"{key_bits(text):.0f} ({INVITE} prints a good one)"
        )
    return text


def _log_level(value: Any) -> str:
    text = _text(value).lower()
    if text not in LOG_LEVELS:
        raise ValueError(f"{text!r} must be one of {', '.join(LOG_LEVELS)}")
    return text


def _path(value: Any) -> Path:
    text = str(value) if isinstance(value, Path) else _text(value)
    if not text:
        raise ValueError("the path is empty")
    try:
        return expanded(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _file(value: Any) -> Path:
    path = _path(value)
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return path


_SETTINGS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "cluster": ("cluster", _name),
    "seeds": ("seeds", lambda value: tuple(parse_seed(text) for text in _texts(value))),
    "key": ("key", _key),
    "join_window": ("join_window_s", _duration),
    "devices": ("devices", _devices),
    "port": ("port", lambda value: _integer(value, 0, 65534)),
    "bind": ("bind", _bind),
    "interfaces": ("interfaces", lambda value: tuple(_texts(value)) or None),
    "auth": ("require_auth", _boolean),
    "trusted_proxies": ("trusted_proxies", _networks),
    "hosts": ("hosts", _hosts),
    "origins": ("origins", _origins),
    "log_level": ("log_level", _log_level),
    "name": ("name", _name),
    "models": ("models_dir", _path),
    "tls_certificate": ("tls_certificate", _file),
    "tls_key": ("tls_key", _file),
}
"""Name in config.toml (and, in capitals, after AIVAILABLE_) → field of Config and its parser."""


def default_home(environment: Mapping[str, str]) -> Path:
    """AIVAILABLE_HOME, else the platform's data directory. Raises ConfigError when a user without
    a home directory asks."""
    if environment.get("AIVAILABLE_HOME"):
        return expanded(environment["AIVAILABLE_HOME"])
    import platformdirs

    try:
        path = Path(platformdirs.user_data_dir("aivailable", appauthor=False))
    except RuntimeError as error:
        raise ConfigError(NO_HOME) from error
    if not path.is_absolute():
        # Versions of platformdirs differ: some hand back the `~` that they cannot expand.
        raise ConfigError(NO_HOME)
    return path


def expanded(path: str | Path) -> Path:
    """The whole path of one that may begin with `~`. Raises ConfigError where nobody can say what
    that is."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {NO_HOME}") from error


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str], home: Path | None = None
) -> Config:
    """The settings of the node that lives in `home`.

    `flags` holds what was given on the command line, by the names of config.toml; an absent name
    is not given. Raises ConfigError with every problem of every source.
    """
    home = expanded(home) if home else default_home(environment)
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources = [
        (f"{home / CONFIG_FILE}: {{}}", _from_file(home, problems)),
        ("AIVAILABLE_{}", _from_environment(environment, problems)),
        ("--{}", flags),
    ]
    for label, source in sources:
        for key, value in source.items():
            shown = key.upper() if label.startswith(ENV_PREFIX) else key
            shown = label.format(_flag(key) if label == "--{}" else shown)
            if key not in _SETTINGS:
                problems.append(f"{shown} is unknown{_closest(key)}")
                continue
            field_name, parse = _SETTINGS[key]
            try:
                values[field_name] = parse(value)
            except ValueError as error:
                problems.append(f"{shown}: {error}")
    if (values.get("tls_certificate") is None) != (values.get("tls_key") is None):
        problems.append("tls_certificate and tls_key belong together: give both or neither")
    if problems:
        raise ConfigError(*problems)
    defaults: dict[str, Any] = {
        "home": home,
        "models_dir": home / "models",
        "name": _host_name(),
    }
    return Config(**(defaults | values))


def _flag(key: str) -> str:
    """How `up` spells the flag of a setting."""
    return {"seeds": "seed", "auth": "no-auth", "trusted_proxies": "trusted-proxy"}.get(
        key, key.replace("_", "-")
    )


def _closest(key: str) -> str:
    near = difflib.get_close_matches(key, _SETTINGS, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(_SETTINGS)}"


def _from_file(home: Path, problems: list[str]) -> Mapping[str, Any]:
    path = home / CONFIG_FILE
    try:
        if home.exists() and not home.is_dir():
            problems.append(f"home {home} is not a directory; choose another with --home")
            return {}
        if not path.exists():
            return {}
        if path.stat().st_size > CONFIG_FILE_MAX_BYTES:
            problems.append(f"{path} is larger than {CONFIG_FILE_MAX_BYTES // 1024} KiB")
            return {}
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path} is not TOML: {error}")
    except UnicodeDecodeError:
        problems.append(f"{path} is not UTF-8 text")
    except OSError as error:
        problems.append(f"cannot read {path}: {error.strerror}; check its owner or use --home")
    return {}


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> Mapping[str, str]:
    """Settings of the environment. A variable of ours that is unknown is a problem only when it
    looks like a misspelt setting: other programs may use the prefix for their own."""
    found: dict[str, str] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_OF_OTHERS:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        near = difflib.get_close_matches(key, _SETTINGS, n=1, cutoff=0.8)
        if key in _SETTINGS:
            found[key] = environment[variable]
        elif near:
            problems.append(f"{variable} is unknown; did you mean {ENV_PREFIX}{near[0].upper()}?")
    return found


def _host_name() -> str:
    """This machine's name, made to fit the grammar of names."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]).lstrip("._-")
    return name[:63] or "node"
