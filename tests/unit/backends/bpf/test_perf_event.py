"""Errors of perf_event_open(2): some mean that BPF cannot be used, others that this host is short of something."""

from __future__ import annotations

import errno
import os

import pytest

from tracer.backends.bpf.perf_event import PERF_COUNT_SW_PAGE_FAULTS, attach_software, perf_error
from tracer.errors import NotPermittedError, PhptraceError, TargetGoneError, UnsupportedError

ENOTSUPP = 524  # the kernel's own, of an instruction that no probe can sit on


@pytest.mark.parametrize(
    "code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOENT, ENOTSUPP]
)
def test_an_operation_that_this_kernel_lacks_or_forbids_is_unsupported(code):
    assert type(perf_error(code, "thread 13")) is UnsupportedError


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EMFILE, "Raise the limit on open files"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "Free memory"),
        (errno.EBUSY, "Try again"),
        (errno.EAGAIN, "Try again"),
    ],
)
def test_a_shortage_is_an_error_that_states_a_fix_and_auto_does_not_fall_back_for_it(code, advice):
    error = perf_error(code, "thread 13")

    assert not isinstance(error, UnsupportedError | NotPermittedError | TargetGoneError)
    assert str(error).startswith(f"cannot set a probe on thread 13: {os.strerror(code)}. ")
    assert advice in str(error)


def test_a_thread_that_has_ended_is_gone():
    assert isinstance(perf_error(errno.ESRCH, "thread 13"), TargetGoneError)


def test_a_probe_that_cannot_be_set_raises():
    with pytest.raises(PhptraceError, match="thread 1073741824"):
        attach_software(-1, PERF_COUNT_SW_PAGE_FAULTS, 1, 1 << 30)
