"""BPF programs with one change, to be passed as `compiled`, so that tests open no internals."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tracer.backends.bpf.programs import Programs
from tracer.targets.elf import Image


class Altered:
    """Programs that behave as these do, except for the changes of a subclass."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.programs, name)


class Noting(Altered):
    """Programs that note the descriptors of one program's probes."""

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


def remove(probe: int) -> None:
    """Take a probe off; its descriptor stays open, for its owner to close.

    PERF_EVENT_IOC_DISABLE would not do: a uprobe runs its BPF program until the event is closed.
    """
    sink = os.open(os.devnull, os.O_RDONLY)
    os.dup2(sink, probe, inheritable=False)
    os.close(sink)
