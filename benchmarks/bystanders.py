"""The cost for processes that are not traced: of any system call, and of mmap in a probed C library."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.pools import Pool, pools
from tracer.backends.bpf.backend import BpfBackend
from tracer.targets.resolve import targets

_SOURCE = r"""
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
int main(void)
{
	int n = 300000, m = 40000, i;
	double a = now(), b, c;
	for (i = 0; i < n; i++) syscall(SYS_getppid);
	b = now();
	for (i = 0; i < m; i++) munmap(mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
	c = now();
	printf("%f %f\n", (b - a) / n, (c - b) / m);
	return 0;
}
"""


def figures(rounds: int) -> Iterator[Figure]:
    """Measure off, on, and on with the fallback, in turn; a difference is within one round."""
    with tempfile.TemporaryDirectory() as folder, pools("traced") as found:
        program = Path(folder) / "bystander"
        subprocess.run(["gcc", "-O2", "-x", "c", "-", "-o", str(program)], input=_SOURCE, text=True, check=True)
        results: dict[str, list[tuple[float, float]]] = {"off": [], "on": [], "fallback": []}
        # The bystander uses the traced pool's own copy of libc, as on a host everything uses the same.
        libc = str(Path(f"/proc/{found['traced'].master}/exe").resolve().parent)
        for _ in range(rounds):
            for mode, runs in results.items():
                with _attached(found["traced"], mode):
                    out = subprocess.run(
                        [str(program)], env={"LD_LIBRARY_PATH": libc}, check=True, capture_output=True, text=True
                    ).stdout
                runs.append((float(out.split()[0]), float(out.split()[1])))
    yield Figure("untraced process: a system call, nothing attached", tuple(call for call, _ in results["off"]), "ns")
    for mode, shown in (("on", "tracing"), ("fallback", "tracing by the system-call tracepoint")):
        pairs = list(zip(results[mode], results["off"], strict=True))
        yield Figure(f"untraced process: added to a system call, {shown}", tuple(a[0] - b[0] for a, b in pairs), "ns")
        label = f"untraced process: added to mmap + munmap, {shown}"
        yield Figure(label, tuple((a[1] - b[1]) / 1000 for a, b in pairs), "µs")


@contextlib.contextmanager
def _attached(pool: Pool, mode: str) -> Iterator[None]:
    if mode == "off":
        yield
        return
    backend = BpfBackend(calls_by_tracepoint=mode == "fallback")
    backend.attach(targets([str(pool.master)]))
    try:
        yield
    finally:
        backend.close()
