"""The kinds of trouble a user can do something about, each with its exit code.

A message says what failed, on what, and why; then what to do. Trouble inside a stream of facts is
not an exception: it is a `Loss` or an `Ending`.
"""

from __future__ import annotations


class PhptraceError(Exception):
    """Base of all; `exit_code` is what the process returns."""

    exit_code = 1


class UsageError(PhptraceError):
    """An option's value, or a combination of options, makes no sense."""

    exit_code = 2


class NoTargetError(PhptraceError):
    """Nothing on this host is what the user named."""

    exit_code = 3


class NotPermittedError(PhptraceError):
    """The process may not do what tracing needs."""

    exit_code = 4


class UnsupportedError(PhptraceError):
    """This kernel, this PHP or this installation cannot be traced with this backend."""

    exit_code = 5


class TargetGoneError(PhptraceError):
    """The target ended, before or while it was traced."""

    exit_code = 6


class RecordingError(PhptraceError):
    """A recording cannot be read."""

    exit_code = 7


class IncompleteError(PhptraceError):
    """The run ended, but not everything that happened is in its output."""

    exit_code = 8
