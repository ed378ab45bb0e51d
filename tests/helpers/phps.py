"""Executables that phptrace takes for PHP, and processes that run them: no PHP is needed.

They have PHP's functions and texts as far as phptrace looks at them, and can fork workers and wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import elfs

from tracer.targets.processes import Process, children, process

_DEADLINE_S = 20.0

GROWTH_SLOT = elfs.DATA + 0x20
PUSHES = bytes.fromhex("415455534881ec")  # push %r12; push %rbp; push %rbx; sub …,%rsp
# Of Debian's php8.2-fpm, behind the load of the heap: see test_decode.py.
_USAGE = bytes.fromhex("4084ff740c488b8010010000c30f1f4000488b4010c3")
_PEAK_USAGE = bytes.fromhex("4084ff740c488b8018010000c30f1f4000488b4018c3")


def loads_heap(rest: bytes, slot: int = GROWTH_SLOT) -> elfs.Content:
    """Code that begins with `mov slot(%rip),%rax`."""
    return lambda at: b"\x48\x8b\x05" + (slot - at - 7).to_bytes(4, "little", signed=True) + rest


def php_functions() -> dict[str, elfs.Content]:
    return {
        "php_request_startup": PUSHES,
        "php_request_shutdown": PUSHES,
        "zend_mm_shutdown": PUSHES,
        "zend_throw_unwind_exit": PUSHES,
        "php_output_deactivate": PUSHES,
        "zend_mm_get_heap": loads_heap(b"\xc3"),
        "zend_memory_usage": loads_heap(_USAGE),
        "zend_memory_peak_usage": loads_heap(_PEAK_USAGE),
    }


def php_data(version: str = "8.2.36", api: str = "API20220829,NTS", sapi: str = "fpm-fcgi") -> dict[str, elfs.Content]:
    settings = b"\0fastcgi.logging\0" if sapi in ("fpm-fcgi", "cgi-fcgi") else b""
    return {
        "sapi_globals": bytes(8),
        "core_globals": bytes(8),
        "alloc_globals": bytes(8),  # at SLOT
        "executor_globals": bytes(8),
        "sapi_module": lambda at: struct.pack("<Q", at + 8) + sapi.encode() + b"\0",
        "texts": f"X-Powered-By: PHP/{version}\0{api}\0".encode() + settings,
    }


def php_elf(**changed: Any) -> bytes:
    """PHP 8.2.36 FPM, as Debian builds it, but what is changed of elfs.elf()'s arguments."""
    return elfs.elf(**{"functions": php_functions(), "data": php_data(), **changed})


def static_php(version: str = "8.2.32", *, fastcgi: bool = True) -> bytes:
    """PHP without a symbol, as a static build is: php-fpm, or PHP's command line."""
    settings = b"\0fastcgi.logging\0" if fastcgi else b""
    return elfs.static_elf() + f"X-Powered-By: PHP/{version}\0API20220829,NTS\0".encode() + settings


def executable(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def running(path: Path, title: str, workers: tuple[str, ...] = ()) -> Iterator[Process]:
    """A process of that title that runs an executable of elfs.elf(), and has children of those titles."""
    started = subprocess.Popen([title, *workers], executable=path, env={}, start_new_session=True)
    try:
        yield _settled(started.pid, title, workers)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def _settled(pid: int, title: str, workers: tuple[str, ...]) -> Process:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        found = process(pid)
        if found is not None and found.title == title and _titles(found) == sorted(workers):
            return found
        os.sched_yield()
    raise AssertionError(f"process {pid} did not start {len(workers)} workers")


def _titles(master: Process) -> list[str]:
    return sorted(child.title for child in children(master))
