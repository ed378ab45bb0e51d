"""The BPF programs, perf events and links of a process: they are gone when its descriptors are."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

# "uprobe link" is what bpf(2) calls uprobe_multi, also that of a return.
PROGRAM, PERF_EVENT, UPROBE_LINK = "bpf-prog", "perf_event", "uprobe link"


def kernel_objects(pid: int | str = "self") -> Counter[str]:
    """Number of the BPF programs, perf events and uprobe links that a process has descriptors of; none once it ends."""
    found: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is just being closed
                found.update(_kinds(os.readlink(descriptor), Path(f"/proc/{pid}/fdinfo/{descriptor.name}")))
    return found


def _kinds(name: str, details: Path) -> list[str]:
    found = [kind for kind in (PROGRAM, PERF_EVENT) if kind in name]
    # bpf_link_show_fdinfo(), kernel/bpf/syscall.c, Linux 6.18
    if "bpf_link" in name and re.search(r"^link_type:\tu(ret)?probe_multi$", details.read_text(), re.MULTILINE):
        found.append(UPROBE_LINK)
    return found
