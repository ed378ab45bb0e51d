"""Settings of a host under which a page fault is not one page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.backends.bpf.rss_caveats import rss_caveats

HUGE = "sys/kernel/mm/transparent_hugepage"


def host(root: Path, settings: dict[str, str]) -> Path:
    for name, text in settings.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def huge_pages(common: str, **of_kb: str) -> dict[str, str]:
    """The settings by which huge pages are used: `k64="[always] inherit madvise never"` is that of 64 KiB."""
    return {
        f"{HUGE}/enabled": common,
        **{f"{HUGE}/hugepages-{size[1:]}kB/enabled": text for size, text in of_kb.items()},
    }


@pytest.mark.parametrize("common", ["always [madvise] never", "always madvise [never]"])
def test_huge_pages_that_are_not_always_used_are_not_a_caveat(tmp_path, common):
    assert rss_caveats(host(tmp_path, huge_pages(common))) == []


def test_a_kernel_without_these_settings_has_no_caveat(tmp_path):
    assert rss_caveats(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (huge_pages("[always] madvise never"), "2 MiB"),
        ({**huge_pages("[always] madvise never"), f"{HUGE}/hpage_pmd_size": str(32 << 20)}, "32 MiB"),
        (huge_pages("[always] madvise never", k2048="always [inherit] madvise never"), "2 MiB"),
        (huge_pages("always [madvise] never", k64="[always] inherit madvise never"), "64 KiB"),
        (
            huge_pages(
                "always madvise [never]",
                k16="[always] inherit madvise never",
                k128="[always] inherit madvise never",
                k2048="always [inherit] madvise never",
            ),
            "128 KiB",
        ),
    ],
)
def test_the_caveat_of_huge_pages_names_the_largest_size(tmp_path, settings, size):
    assert rss_caveats(host(tmp_path, settings)) == [
        f"transparent huge pages are on (always), so a page fault may be {size} and is counted as one page."
        " With --metric rss, the growth of functions is shown too small"
    ]


def test_sizes_that_are_not_always_used_are_not_a_caveat(tmp_path):
    settings = huge_pages(
        "[always] madvise never", k64="always inherit [madvise] never", k2048="always inherit madvise [never]"
    )

    assert rss_caveats(host(tmp_path, settings)) == []


@pytest.mark.parametrize(
    ("balancing", "nodes", "caveats"),
    [("1", "0-1", 1), ("2", "0,2", 1), ("0", "0-1", 0), ("1", "0", 0), ("1", "12", 0)],
)
def test_numa_balancing_is_a_caveat_on_more_than_one_node(tmp_path, balancing, nodes, caveats):
    settings = {"proc/sys/kernel/numa_balancing": balancing, "sys/devices/system/node/online": nodes}
    found = rss_caveats(host(tmp_path, settings))

    assert [text.split(",")[0] for text in found] == ["automatic NUMA balancing is on"] * caveats
