"""Detects settings of this host under which a page fault is not exactly one new page, as the metric `rss` assumes."""

from __future__ import annotations

import re
from pathlib import Path

_HUGE_BYTES = 2 << 20  # where the kernel does not say (x86-64)


def rss_caveats(root: Path = Path("/")) -> list[str]:
    """Return a sentence, for the user, for each such setting; `root` is the directory of sys/ and proc/."""
    found = []
    huge = _always_huge(root / "sys/kernel/mm/transparent_hugepage")
    if huge:
        found.append(
            f"transparent huge pages are on (always), so a page fault may be {_size(huge)} and is counted as one page."
            " With --metric rss, the growth of functions is shown too small"
        )
    balancing = _text(root / "proc/sys/kernel/numa_balancing")
    nodes = _text(root / "sys/devices/system/node/online")
    if balancing not in ("", "0") and not nodes.isdigit():  # such as 0-1, or 0,2
        found.append(
            "automatic NUMA balancing is on, so a page may fault again and is then counted twice."
            " With --metric rss, the growth of functions is shown too large"
        )
    return found


def _always_huge(settings: Path) -> int:
    """Bytes of the largest page that a fault brings without madvise(); 0 if that is a plain page.

    Since Linux 6.8 each size has a setting of its own, which may be to inherit the common one
    (Documentation/admin-guide/mm/transhuge.rst).
    """
    common = _chosen(settings / "enabled")
    sizes = []
    for folder in settings.glob("hugepages-*kB"):
        own = _chosen(folder / "enabled")
        if "always" in (own, common if own == "inherit" else ""):
            sizes.append(int(re.sub(r"\D", "", folder.name)) << 10)
    if not any(settings.glob("hugepages-*kB")) and common == "always":
        sizes.append(int(_text(settings / "hpage_pmd_size") or _HUGE_BYTES))
    return max(sizes, default=0)


def _chosen(path: Path) -> str:
    """The word in brackets of `always [madvise] never`; empty if there is none."""
    found = re.search(r"\[(\w+)\]", _text(path))
    return found.group(1) if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a kernel without it
        return ""


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
