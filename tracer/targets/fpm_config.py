"""The pools in a php-fpm master's configuration, so that a pool without a worker at the moment is known.

Best effort: reads the file named in the master's title and the files it includes.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat

from tracer.targets.processes import MASTER_TITLE, Process

_CONFIG_BYTES = 1 << 20
_MAX_INCLUDES = 16
_MAX_FILES = 256
_SECTION = re.compile(r"^\s*\[([^\]\n]+)\]", re.MULTILINE)
_SLOWLOG = re.compile(r"^\s*request_slowlog_timeout\s*=\s*(\d+)", re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\s*=\s*(\S+)", re.MULTILINE)


def fpm_pools(master: Process) -> set[str]:
    """Names of the configured pools; empty if the configuration cannot be read."""
    return {name.strip() for part in _texts(master) for name in _SECTION.findall(part)} - {"global"}


def has_slowlog(master: Process) -> bool:
    """True if a pool has request_slowlog_timeout set: then the master itself traces slow workers with ptrace."""
    return any(float(seconds) > 0 for part in _texts(master) for seconds in _SLOWLOG.findall(part))


def _texts(master: Process) -> list[str]:
    match = re.fullmatch(re.escape(MASTER_TITLE) + r" \((.+)\)", master.title)
    if match is None:
        return []
    text = _read(master.pid, match[1])
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
