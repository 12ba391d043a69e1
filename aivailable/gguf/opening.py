"""Opening a model file: a regular file or a refusal, and never a wait.

Owns the check of what lies at a path. A name may lead to a pipe, on which a plain `open` waits for
ever, or to a device.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from aivailable.errors import GgufError


def open_model_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The regular, not empty file at the path, for reading. Raises GgufError for anything else,
    OSError when it cannot be opened."""
    label = os.fspath(path)
    # O_NONBLOCK: a pipe without a writer opens at once, and is refused below.
    handle = os.open(label, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise GgufError(f"{label}: this is no regular file; give the path of a .gguf file")
        if found.st_size == 0:
            raise GgufError(f"{label}: the file is empty; copy it again")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise
