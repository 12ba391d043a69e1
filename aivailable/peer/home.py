"""The home directory: this node's small persistent facts, and the lock that keeps it ours.

Owns file modes, atomic replacement and fsync. It must not know what the facts mean.
Built by peer.app; used through ports.Home.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from pathlib import Path

from aivailable.errors import ConfigError

ADMIN_KEY_FILE = "admin.key"
LOCK_NAME = "lock"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


class FileHome:
    """ports.Home over a directory of mode 0700. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Makes and locks the directory. Raises ConfigError when it cannot be used."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(path, 0o700)
            self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the home {path} cannot be used ({error.strerror}): make it readable and "
                "writable for this user, or choose another with --home"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._lock, 0)
            os.write(self._lock, str(os.getpid()).encode())
        except OSError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace")
            os.close(self._lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(
                    f"the home {path} cannot be used ({error.strerror}): free some space, "
                    "or choose another with --home"
                ) from error
            raise ConfigError(
                f"the home {path} is used by another aivailable (pid {owner or 'unknown'}); "
                "stop it, or choose another with --home"
            ) from None

    def load(self, name: str) -> bytes | None:
        """What was saved under `name`, None if nothing was. Raises OSError."""
        try:
            return self._file(name).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, name: str, data: bytes) -> None:
        """Atomic and durable; mode 0600. Raises OSError, the old content then stands."""
        write_durably(self._file(name), data)

    def remove(self, name: str) -> None:
        """Raises OSError; nothing there is fine."""
        self._file(name).unlink(missing_ok=True)
        sync_directory(self.path)

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._lock)

    def _file(self, name: str) -> Path:
        if name == LOCK_NAME or _NAME.match(name) is None:
            raise ValueError(f"{name!r} cannot name a fact in home")
        return self.path / name


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, mode 0600, synced with its directory. Raises OSError."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename or unlink in `path` durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
