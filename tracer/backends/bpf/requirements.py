"""Requirements of the BPF backend that this host does not meet, checked before anything is tried."""

from __future__ import annotations

import platform

from tracer.backends.bpf.programs import bcc_problem
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets import arch, kernel


def unmet_requirements() -> list[PhptraceError]:
    """Return what keeps this backend from working here, each with its fix, the gravest first; [] if nothing does."""
    found: list[PhptraceError] = []
    missing = kernel.missing_capabilities()
    if missing:
        found.append(
            NotPermittedError(f"tracing with BPF needs {', '.join(missing)}, which this process lacks. Run with sudo.")
        )
    if platform.machine() != arch.MACHINE:
        found.append(
            UnsupportedError(f"the BPF backend supports x86-64 only, not {platform.machine()}. Use --backend ptrace.")
        )
    problem = bcc_problem()
    if problem is not None:
        found.append(problem)
    if kernel.lockdown() == "confidentiality":
        found.append(
            UnsupportedError(
                "kernel lockdown is at confidentiality: BPF may not read memory. Boot with lockdown=integrity or none."
            )
        )
    if kernel.uprobe_pmu() is None:
        found.append(UnsupportedError("this kernel has no uprobes. Boot a kernel with CONFIG_UPROBE_EVENTS=y."))
    if not kernel.in_initial_pid_namespace():
        found.append(
            UnsupportedError(
                "phptrace runs in a PID namespace of its own, where pids are not the kernel's."
                " Run it on the host, or the container with --pid=host."
            )
        )
    return found
