"""Every error the package raises on purpose, in one tree.

Owns names and messages; imports nothing. Each error says what to do next in its text.

AivailableError
 ├─ ConfigError            a setting, file or flag is wrong (all problems at once)
 ├─ CodeTooOld             the cluster works at a feature level that this version cannot do
 ├─ WireError              bytes from outside break the protocol
 │   ├─ FrameError         a frame is malformed or over its limit
 │   └─ SchemaError        a value does not have the declared shape
 ├─ GgufError              a model file is damaged, truncated or unsupported
 ├─ LinkError              a connection between two nodes failed or was refused
 │   ├─ LinkLost           the connection died; what was under way is unknown
 │   └─ StreamReset        the other side ended this stream, with a code
 ├─ ProposalError          a command did not get into the log
 │   ├─ ProposalUnknown    deadline passed: applied or not, nobody knows; same id again
 │   └─ ProposalRejected   applied and refused, with a reason
 ├─ WorkerError            a worker failed to start, load or answer
 └─ RequestError           a request that cannot be served (HTTP status, code)
"""

from __future__ import annotations


class AivailableError(Exception):
    """Base of every deliberate error."""


class ConfigError(AivailableError):
    """One or more settings are wrong; `problems` lists all of them."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class CodeTooOld(AivailableError):
    """This version cannot follow its cluster: it must end, not guess. The text says what to do."""


class WireError(AivailableError):
    """Bytes from outside this process break the protocol."""


class FrameError(WireError):
    """A frame is malformed or larger than its limit."""


class SchemaError(WireError):
    """A decoded value does not have the declared shape."""


class GgufError(AivailableError):
    """A model file is damaged, truncated, or of an unsupported kind."""


class LinkError(AivailableError):
    """A connection to another node could not be made or used."""


class LinkLost(LinkError):
    """The link died while something was under way; its outcome is unknown."""


class StreamReset(LinkError):
    """The other side ended this stream before its orderly end."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


class ProposalError(AivailableError):
    """A command did not get into the replicated log."""


class ProposalUnknown(ProposalError):
    """The deadline passed; the command may yet be applied. Retry with the same command id."""


class ProposalRejected(ProposalError):
    """The command was applied and refused; the state is unchanged."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkerError(AivailableError):
    """A worker process failed to start, to load, or to answer."""


class RequestError(AivailableError):
    """A client's request cannot be served.

    `status` is the HTTP status, `code` a stable machine-readable word,
    `retry_after_s` set where a later try can succeed.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
