"""The BPF programs, perf events and links of a process: they are gone when its descriptors are."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

PROGRAM, PERF_EVENT, UPROBE_LINK = "program", "perf event", "uprobe link"
_NAMES = {"anon_inode:bpf-prog": PROGRAM, "anon_inode:[perf_event]": PERF_EVENT}


def kernel_objects(pid: int | str = "self") -> Counter[str]:
    """Number of the BPF programs, perf events and uprobe links that a process has descriptors of; none once it ends."""
    found: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is just being closed
                name = os.readlink(descriptor)
                if name in _NAMES:
                    found[_NAMES[name]] += 1
                elif name == "anon_inode:bpf_link":
                    found[UPROBE_LINK] += _is_of_uprobes(Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text())
    return +found


def _is_of_uprobes(details: str) -> bool:
    """True if the link is uprobe_multi: bpf_link_show_fdinfo(), kernel/bpf/syscall.c, Linux 6.18."""
    return re.search(r"^link_type:\tu(ret)?probe_multi$", details, re.MULTILINE) is not None
