"""BPF programs with one thing about them changed, to be passed as `compiled`: no internals are pried open."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from typing import Any

from tracer.backends.bpf.programs import Programs
from tracer.targets.elf import Image

_PERF_EVENT_IOC_DISABLE = 0x2401  # _IO('$', 1), include/uapi/linux/perf_event.h, Linux 6.18


class Altered:
    """Behaves as these programs do, but for what a subclass changes."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.programs, name)


class Noting(Altered):
    """Notes the descriptors of one program's probes."""

    def __init__(self, programs: Programs, function: str, noted: list[int]) -> None:
        super().__init__(programs)
        self._function = function
        self._noted = noted

    def on_uprobe(self, function: str, image: Image, offset: int, *, at_return: bool = False) -> int:
        fd = self.programs.on_uprobe(function, image, offset, at_return=at_return)
        if function == self._function:
            self._noted.append(fd)
        return fd


def altering(source: str, alter: Callable[[Programs], Altered], make: Callable[..., Programs]) -> Callable[..., Any]:
    """A factory, to be passed as `compiled`: the programs of that source altered, all others as `make` makes them."""

    def compiled(of: str, **defines: int) -> object:
        programs = make(of, **defines)
        return alter(programs) if of == source else programs

    return compiled


def disable(event: int) -> None:
    """Stop a probe from firing; its descriptor stays, for its owner to close."""
    fcntl.ioctl(event, _PERF_EVENT_IOC_DISABLE)
