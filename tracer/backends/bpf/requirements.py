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
            NotPermittedError(f"cannot trace with BPF: this process lacks {', '.join(missing)}. Run with sudo.")
        )
    if platform.machine() != arch.MACHINE:
        found.append(
            UnsupportedError(
                f"cannot trace with BPF on {platform.machine()}: phptrace supports x86-64 only. Use --backend ptrace."
            )
        )
    problem = bcc_problem()
    if problem is not None:
        found.append(problem)
    if kernel.lockdown() == "confidentiality":
        found.append(
            UnsupportedError(
                "cannot trace with BPF: kernel lockdown is at confidentiality, so BPF may not read memory."
                " Boot with lockdown=integrity or none."
            )
        )
    if kernel.uprobe_pmu() is None:
        found.append(
            UnsupportedError(
                "cannot trace with BPF: this kernel has no uprobes. Boot a kernel with CONFIG_UPROBE_EVENTS=y."
            )
        )
    if not kernel.in_initial_pid_namespace():
        found.append(
            UnsupportedError(
                "cannot trace with BPF: phptrace runs in a PID namespace of its own, where PIDs differ from the host's."
                " Run it on the host, or start the container with --pid=host."
            )
        )
    return found
