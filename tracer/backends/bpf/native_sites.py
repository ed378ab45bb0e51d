"""Where each worker's C library is probed to count what it allocates natively."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tracer.backends.records.request_structs import NativeSite
from tracer.backends.records.worker_table import TrackedWorker
from tracer.errors import TargetGoneError, UnsupportedError
from tracer.targets import allocator, processes
from tracer.targets.elf import Image


@dataclasses.dataclass(frozen=True, slots=True)
class Sites:
    """The file, and file offsets by cookie. `slow`: at some of them the kernel single-steps the instruction."""

    image: Image
    by_cookie: dict[int, int]
    slow: bool


class NativeSites:
    """Finds the sites once for the workers of a master. The owner calls close(), which closes the C libraries."""

    def __init__(self, lack: Callable[[str, UnsupportedError | None], None]) -> None:
        """`lack` is called with the reason, and its error if it has one, where there are no sites; it may raise."""
        self._lack = lack
        self._found: dict[tuple[int, ...], Sites | None] = {}  # by PHP and master
        self._libraries: dict[tuple[int, int], Sites | None] = {}
        self._images: list[Image] = []

    def of(self, pid: int, worker: TrackedWorker) -> Sites | None:
        """The sites in that worker's C library; None if they cannot be probed. TargetGoneError if it has ended."""
        master = worker.target.master
        key = (*worker.target.php.image.identity, master.pid if master else pid)
        if key not in self._found:
            self._found[key] = self._look_for(pid)
        return self._found[key]

    def master_replaced(self, pid: int) -> None:
        """Look anew from now on: the master executed a program, so its C library may be another one."""
        for key in [key for key in self._found if key[-1] == pid]:
            del self._found[key]

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._found.clear()
        self._libraries.clear()
        while self._images:
            self._images.pop().close()

    def _look_for(self, pid: int) -> Sites | None:
        try:
            if not processes.file_mappings(pid):
                raise TargetGoneError(f"cannot set probes in process {pid}: it is ending. Check the PID.")
            substitute = allocator.substitute(pid)
            image = processes.open_libc(pid) if substitute is None else None
        except OSError as exc:
            if processes.process(pid) is None:
                raise TargetGoneError(f"cannot set probes in process {pid}: it has ended. Check the PID.") from exc
            self._lack(str(exc), None)
            return None
        if substitute is not None:
            self._lack(f"the workers use {substitute} instead of the C library's malloc", None)
            return None
        if image is None:
            self._lack("the workers' C library was not found", None)
            return None
        if image.identity in self._libraries:  # that of another master, or of this one before a reload
            identity = image.identity
            image.close()
            return self._libraries[identity]
        self._images.append(image)
        self._libraries[image.identity] = None
        try:
            found = allocator.inspect(image)
        except UnsupportedError as exc:
            self._lack(str(exc), exc)
            return None
        if not found.usable:
            unknown = ", ".join(found.missing)
            self._lack(f"phptrace does not know the machine code of {unknown} in the C library", None)
            return None
        by_cookie = {int(NativeSite[name.upper()]): offset for name, offset in found.sites.items()}
        self._libraries[image.identity] = Sites(image, by_cookie, bool(found.slow))
        return self._libraries[image.identity]
