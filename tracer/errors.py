"""The kinds of errors that a user can act on, each with its exit code.

A message states what failed, on what and why, then what to do. An error inside a stream of facts is
not an exception but a `Loss` or an `Ending`.
"""

from __future__ import annotations


class PhptraceError(Exception):
    """Base of all errors; `exit_code` is what the process returns."""

    exit_code = 1

    def __init__(self, message: str, *, fixable: bool = False) -> None:
        """`fixable`: on this host, by a package, a right or a setting. `auto` then takes no slower backend."""
        super().__init__(message)
        self.fixable = fixable


class OverLimitError(PhptraceError):
    """A limit that the user set was exceeded."""

    exit_code = 1


class UsageError(PhptraceError):
    """The value of an option, or a combination of options, is not valid."""

    exit_code = 2


class NoTargetError(PhptraceError):
    """Nothing on this host has the name that the user gave."""

    exit_code = 3


class NotPermittedError(PhptraceError):
    """The process lacks the rights that tracing needs."""

    exit_code = 4


class UnsupportedError(PhptraceError):
    """This kernel, this PHP or this installation cannot be traced with this backend."""

    exit_code = 5


class TargetGoneError(PhptraceError):
    """The target ended before or during tracing."""

    exit_code = 6


class RecordingError(PhptraceError):
    """A recording cannot be read."""

    exit_code = 7


class IncompleteError(PhptraceError):
    """The run ended, but its output lacks some of what happened."""

    exit_code = 8
