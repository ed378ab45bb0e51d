"""Whether one page fault is one new page on this host, as the weight `rss` of call stacks takes for granted."""

from __future__ import annotations

import re
from pathlib import Path

_HUGE_BYTES = 2 << 20  # where the kernel does not say (x86-64)


def caveats(root: Path = Path("/")) -> list[str]:
    """A sentence for each setting by which it is not; `root` is where sys/ and proc/ are."""
    found = []
    huge = _always_huge(root / "sys/kernel/mm/transparent_hugepage")
    if huge:
        found.append(
            f"stacks: rss: transparent huge pages are on (always): a page fault may be {_size(huge)} and is counted as"
            " one page, so that functions seem to have grown by less than they did; mapped and zend are not concerned"
        )
    balancing = _text(root / "proc/sys/kernel/numa_balancing")
    nodes = _text(root / "sys/devices/system/node/online")
    if balancing not in ("", "0") and not nodes.isdigit():  # such as 0-1, or 0,2
        found.append(
            "stacks: rss: automatic NUMA balancing is on: a page that is there already may fault again and is counted"
            " once more, so that functions seem to have grown by more than they did; mapped and zend are not concerned"
        )
    return found


def _always_huge(settings: Path) -> int:
    """Bytes of the largest page that a fault brings without being asked for; 0 if that is a plain page.

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
    """That of `always [madvise] never` which is in brackets."""
    found = re.search(r"\[(\w+)\]", _text(path))
    return found.group(1) if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a kernel without it
        return ""


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
