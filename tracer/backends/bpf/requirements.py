"""Requirements of the BPF backend that this host does not meet, checked before anything is tried."""

from __future__ import annotations

import platform

from tracer.backends.bpf.programs import bcc_problem
from tracer.backends.bpf.self_check import addresses_hidden
from tracer.errors import NotPermittedError, PhptraceError, UnsupportedError
from tracer.targets import arch, kernel
from tracer.targets.resolve import Target


def unmet_requirements() -> list[PhptraceError]:
    """Return what keeps this backend from working here, each with its fix, the gravest first; [] if nothing does.

    An error that the user can fix on this host is `fixable`. One that only another kernel or container changes is not.
    """
    found: list[PhptraceError] = []
    missing = kernel.missing_capabilities()
    if missing:
        gain = kernel.may_gain(missing)
        fix = "Run with sudo." if gain else "Run with sudo on the host, or start the container with --privileged."
        found.append(
            NotPermittedError(f"cannot trace with BPF: this process lacks {', '.join(missing)}. {fix}", fixable=gain)
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
    found += _kernel_problems()
    if not kernel.in_initial_pid_namespace():
        found.append(
            UnsupportedError(
                "cannot trace with BPF: phptrace runs in a PID namespace of its own, where PIDs differ from the host's."
                " Run it on the host, or start the container with --pid=host."
            )
        )
    return found


def refusal_of(target: Target) -> PhptraceError | None:
    """Return why BPF cannot trace that target, whatever the host; None if it can."""
    unhooked = target.php.unhooked
    if unhooked is None:
        return None
    if target.speaks_fastcgi:
        return UnsupportedError(unhooked.replace("--backend ptrace", f"--backend ptrace --pid {target.pid}"))
    reason, _, _ = unhooked.rpartition(". ")
    return UnsupportedError(f"{reason}. Use a non-thread-safe build of PHP with dynamic symbols.")


def _kernel_problems() -> list[PhptraceError]:
    """The requirements that /sys and /proc show to be unmet."""
    if not kernel.has_sysfs():
        return [
            UnsupportedError(
                "cannot trace with BPF: /sys is not mounted, so nothing is known of this kernel."
                " Run mount -t sysfs sysfs /sys.",
                fixable=True,
            )
        ]
    found: list[PhptraceError] = []
    try:
        if kernel.uprobe_pmu() is None:
            found.append(
                UnsupportedError(
                    "cannot trace with BPF: this kernel has no uprobes. Boot a kernel with CONFIG_UPROBE_EVENTS=y."
                )
            )
        percpu = kernel.running_layout().rss_kind is kernel.RssKind.PERCPU
    except UnsupportedError as exc:
        found.append(exc)
    else:
        if percpu and kernel.hides_addresses():
            found.append(addresses_hidden())
    return found
