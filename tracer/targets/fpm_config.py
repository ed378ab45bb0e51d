"""The pools in a php-fpm master's configuration, so that one without a worker at the moment is known; their timeouts.

Best effort: reads the file named in the master's title and the files it includes.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import stat
from typing import NamedTuple

from tracer.targets.processes import MASTER_TITLE, Process

_CONFIG_BYTES = 1 << 20
_MAX_INCLUDES = 16
_MAX_FILES = 256
_SECTION = re.compile(r"^\s*\[([^\]\n]+)\]", re.MULTILINE)
_SLOWLOG = re.compile(r"^\s*request_slowlog_timeout\s*=\s*(\d+)", re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\s*=\s*(\S+)", re.MULTILINE)
# fpm_conf_set_time() in sapi/fpm/fpm/fpm_conf.c, PHP 7.4 to 8.5: seconds, or a number and its unit.
_TIME = re.compile(r"(\d{1,9})([smhd]?)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WHOLE = re.compile(r"\d{1,9}")
_TERMINATE = "request_terminate_timeout"
# php-fpm sets the values first, then the admin values: fpm_php_apply_defines() in fpm_php.c, PHP 7.4 to 8.5.
_EXECUTION = ("php_value[max_execution_time]", "php_admin_value[max_execution_time]")
_LINE = re.compile(
    r"^[ \t]*(?:\[(?P<pool>[^\]\n]+)\]|(?P<name>request_terminate_timeout"
    r"|php_(?:admin_)?value\[max_execution_time\])[ \t]*=[ \t]*(?P<value>[^;\n]*))",
    re.MULTILINE,
)


class Timeouts(NamedTuple):
    """Seconds after which a request of a pool is ended; 0: never; None: not known."""

    request_terminate_timeout_s: float | None  # by the master, which kills the worker
    max_execution_time_s: float | None  # by PHP, of CPU time; known only if the pool sets it


def fpm_pools(master: Process) -> set[str]:
    """Names of the configured pools; empty if the configuration cannot be read."""
    return {name.strip() for part in _texts(master) for name in _SECTION.findall(part)} - {"global"}


def has_slowlog(master: Process) -> bool:
    """True if a pool has request_slowlog_timeout set: then the master itself traces slow workers with ptrace."""
    return any(float(seconds) > 0 for part in _texts(master) for seconds in _SLOWLOG.findall(part))


def fpm_timeouts(master: Process) -> dict[str, Timeouts]:
    """The timeouts of the configured pools, as the files have them now; empty if that is not sure."""
    settings: dict[str, dict[str, str]] = {}
    for part in _texts(master):
        pool = None
        for line in _LINE.finditer(part):
            if line["pool"] is not None:
                pool = settings.setdefault(line["pool"].strip(), {})
            elif pool is None:  # a part of the section that includes this file
                return {}
            else:
                pool[line["name"]] = line["value"].strip().strip("\"'")
    settings.pop("global", None)
    return {name: Timeouts(_terminate_timeout(found), _execution_time(found)) for name, found in settings.items()}


def _terminate_timeout(settings: dict[str, str]) -> float | None:
    match = _TIME.fullmatch(settings.get(_TERMINATE, "0"))
    return None if match is None else float(int(match[1]) * _SECONDS[match[2].lower()])


def _execution_time(settings: dict[str, str]) -> float | None:
    found = [settings[name] for name in _EXECUTION if name in settings]
    return float(found[-1]) if found and _WHOLE.fullmatch(found[-1]) else None


def _texts(master: Process) -> list[str]:
    match = re.fullmatch(re.escape(MASTER_TITLE) + r" \((.+)\)", master.title)
    if match is None:
        return []
    path = match[1]
    if not path.startswith("/"):  # as it was given with -y
        with contextlib.suppress(OSError):
            path = os.path.join(os.readlink(f"/proc/{master.pid}/cwd"), path)
    text = _read(master.pid, path)
    texts = [text]
    for pattern in _INCLUDE.findall(text)[:_MAX_INCLUDES]:
        texts += [_read(master.pid, path) for path in _inside(master.pid, pattern)]
    return texts


def _inside(pid: int, pattern: str) -> list[str]:
    """Files that match, by the paths the master sees: it may have another root directory."""
    folder, name = os.path.split(os.path.join("/", pattern))
    if glob.has_magic(folder):  # untrusted: a search through every folder of a host may never end
        return []
    root = f"/proc/{pid}/root"
    found = itertools.islice(glob.iglob(os.path.join(root + glob.escape(folder), name)), _MAX_FILES)
    return [path.removeprefix(root) for path in found]


def _read(pid: int, path: str) -> str:
    """The text of a regular file; empty if it cannot be read.

    The path is untrusted: opening a FIFO would block, and opening a device may do harm.
    """
    try:
        place = os.open(f"/proc/{pid}/root{os.path.join('/', path)}", os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                return ""
            with open(f"/proc/self/fd/{place}", "rb") as file:
                return file.read(_CONFIG_BYTES).decode("utf-8", "replace")
        finally:
            os.close(place)
    except (OSError, ValueError):
        return ""
