"""BPF programs with one thing about them changed, to be passed as `compiled`: no internals are pried open."""

from __future__ import annotations

import fcntl
from typing import Any

from tracer.backends.bpf.programs import Programs
from tracer.targets.elf import Image

_PERF_EVENT_IOC_DISABLE = 0x2401  # _IO('$', 1), include/uapi/linux/perf_event.h, Linux 6.18


class Altered(Programs):
    """Programs that are others but for what a subclass changes."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def __getattribute__(self, name: str) -> Any:
        changed = any(name in each.__dict__ for each in type(self).__mro__ if each not in (Programs, object))
        return object.__getattribute__(self, name) if changed or name == "programs" else getattr(self.programs, name)


class Noting(Altered):
    """Notes the descriptors of one program's probes."""

    def __init__(self, programs: Programs, function: str, noted: list[int]) -> None:
        super().__init__(programs)
        self.function = function
        self.noted = noted

    def on_uprobe(self, function: str, image: Image, offset: int, *, at_return: bool = False) -> int:
        fd = self.programs.on_uprobe(function, image, offset, at_return=at_return)
        if function == self.function:
            self.noted.append(fd)
        return fd


def disable(event: int) -> None:
    """Stop a probe from firing; its descriptor stays, for its owner to close."""
    fcntl.ioctl(event, _PERF_EVENT_IOC_DISABLE)
