"""Compiles and loads the BPF programs: the only module that knows bcc, and only inside functions."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import importlib
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracer.backends.bpf import uprobe_multi
from tracer.backends.bpf.maps import Map, Table
from tracer.backends.bpf.perf_event import attach_software, attach_uprobe
from tracer.errors import UnsupportedError
from tracer.targets import kernel
from tracer.targets.elf import Image
from tracer.targets.processes import file_mappings

log = logging.getLogger(__name__)

RING_BYTES = 8 << 20
_MADV_DONTNEED = 4
_SHORT_OF = (errno.EMFILE, errno.ENFILE)
_COMPILER = ("libLLVM", "libclang")


class ProgramKind(enum.Enum):
    """The kind of event that a BPF program is attached to, by bcc's name for it."""

    UPROBE = "KPROBE"
    RAW_TRACEPOINT = "RAW_TRACEPOINT"
    PERF_EVENT = "PERF_EVENT"


def bpf_sources() -> Path:
    """Return the directory of the BPF programs' C sources."""
    return Path(__file__).resolve().parents[2] / "bpf_source"


def bcc_problem() -> UnsupportedError | None:
    """Return why bcc cannot be used; None if it can."""
    try:
        module = importlib.import_module("bcc")
    except ImportError as exc:
        return UnsupportedError(
            f"cannot import bcc: {exc}. Install your distribution's package (apt install python3-bpfcc). If phptrace is"
            " in a virtual environment, make that with /usr/bin/python3 -m venv --system-site-packages.",
            fixable=True,
        )
    if not hasattr(module, "BPF"):
        return UnsupportedError(
            f"cannot use the bcc in {os.path.dirname(module.__file__ or '?')}: it is PyPI's package of that name,"
            " which is not about BPF. Run pip uninstall bcc, then apt install python3-bpfcc.",
            fixable=True,
        )
    return None


def bcc_version() -> str:
    """Return bcc's version and directory, for the user; call it only if bcc_problem() is None."""
    module = importlib.import_module("bcc")
    return f"{getattr(module, '__version__', '?')} in {os.path.dirname(module.__file__ or '?')}"


@contextlib.contextmanager
def _refused_by_bcc(doing: str) -> Iterator[None]:
    """Turn what bcc raises within the block into an UnsupportedError; `doing` is the verb and object of its text.

    bcc 0.26 raises plain Exception for every failure of its library (bcc/__init__.py): there is no class to name.
    """
    try:
        yield
    except Exception as exc:
        short = any(os.strerror(code) in str(exc) for code in _SHORT_OF)
        fix = "Close files, or raise the limit (ulimit -n)" if short else "Run `phptrace doctor`"
        raise UnsupportedError(f"cannot {doing}: {exc}. {fix}.", fixable=short) from exc


class Programs:
    """One of the files in bpf/, compiled for this host. The owner calls close()."""

    def __init__(self, source: str, **defines: int) -> None:
        """Compile the file `source` of bpf/ with these macros. Programs are loaded when they are first asked for.

        Raises UnsupportedError if there is no bcc, or it cannot compile the programs.
        """
        problem = bcc_problem()
        if problem is not None:
            raise problem
        from bcc import BPF

        sources = bpf_sources()
        # bcc then compiles against our own declarations: no kernel headers are needed, none can mislead.
        os.environ["BCC_KERNEL_SOURCE"] = str(sources / "kernel")
        flags = [f"-I{sources}", *(f"-D{name}={value}" for name, value in defines.items())]
        flags.append(f"-DRING_PAGES={RING_BYTES // mmap.PAGESIZE}")
        with _refused_by_bcc(f"compile the BPF programs in {source}"):
            self._bpf: Any = BPF(src_file=str(sources / source).encode(), cflags=flags)
        self._maps: dict[str, Map] = {}

    def map(self, name: str) -> Map:
        """Return the map of that name in the source file."""
        if name not in self._maps:
            self._maps[name] = Map(self._bpf, name)
        return self._maps[name]

    def table(self, name: str) -> Table:
        """Return the hash of that name in the source file, to be read as a whole."""
        return Table(self._bpf, name)

    def share(self, name: str, fd: int) -> None:
        """Put another module's map in the place of the one of that name; call it before a program is loaded.

        `fd` stays the caller's. bcc writes a map's descriptor into the programs when it compiles them, and the kernel
        looks up what it stands for when it loads them. (bcc's own "extern" maps go stale when a process loads programs
        a second time.)
        """
        os.dup2(fd, self.map(name).fd, inheritable=False)

    def fd(self, function: str, kind: ProgramKind = ProgramKind.UPROBE) -> int:
        """Return the descriptor of a program, which is loaded when it is first asked for, and stays ours to close.

        Raises UnsupportedError if the kernel refuses it.
        """
        with _refused_by_bcc(f"load the BPF program {function}"):
            # For a link; a perf event takes it, too (__perf_event_set_bpf_prog(), kernel/events/core.c, 6.18), and a
            # kernel without such links ignores it (bpf_prog_load_check_attach(), kernel/bpf/syscall.c, 5.8 to 6.5).
            for_links = (None, uprobe_multi.TRACE_UPROBE_MULTI) if kind is ProgramKind.UPROBE else ()
            return int(self._bpf.load_func(function.encode(), getattr(self._bpf, kind.value), *for_links).fd)

    def on_raw_tracepoint(self, tracepoint: str, function: str, until: contextlib.ExitStack) -> None:
        """Run the program whenever any process passes that tracepoint, until the stack `until` is closed.

        Raises UnsupportedError if the program does not load or the tracepoint does not exist.
        """
        self.fd(function, ProgramKind.RAW_TRACEPOINT)
        with _refused_by_bcc(f"attach to the tracepoint {tracepoint}"):
            self._bpf.attach_raw_tracepoint(tp=tracepoint.encode(), fn_name=function.encode())
        until.callback(self._bpf.detach_raw_tracepoint, tracepoint.encode())

    def on_uprobe(self, function: str, image: Image, offset: int, *, at_return: bool = False) -> int:
        """Run the program whenever any process executes that place of that file; `offset` is in bytes.

        By a link, which the kernel removes sooner; by a perf event where it refuses that. Returns a descriptor; the
        caller closes it, which removes the probe. The image may be closed before. Raises UnsupportedError if the
        program does not load or the kernel cannot probe there, PhptraceError as perf_error().
        """
        program = self.fd(function)
        try:
            return uprobe_multi.link(program, image.path, {0: offset}, at_return=at_return)
        except UnsupportedError as exc:
            log.info("%s is set by a perf event: %s", function, exc)
        pmu = kernel.uprobe_pmu()
        if pmu is None:
            raise UnsupportedError(
                "cannot trace with BPF: this kernel has no uprobes. Boot a kernel with CONFIG_UPROBE_EVENTS=y."
            )
        return attach_uprobe(program, pmu, image.path, offset, at_return=at_return)

    def on_software_event(self, function: str, event: int, period: int, tid: int) -> int:
        """Run the program at every `period`-th event of that thread, and of what it starts: see attach_software().

        Returns a descriptor; the caller closes it, which ends the events. Raises also UnsupportedError if the program
        does not load.
        """
        return attach_software(self.fd(function, ProgramKind.PERF_EVENT), event, period, tid)

    def close(self) -> None:
        """Detach what is attached, and free programs and maps. Call it once."""
        self._bpf.cleanup()


def release_compiler_memory() -> None:
    """Give back the memory that only compiling needed: LLVM is most of what a bcc process weighs.

    Frees what malloc holds on to, and lets go of the compiler's code. Code pages are clean copies of the file:
    should anything still run there, they are read again. Only executable mappings, since those that are merely
    read-only hold relocated pointers.
    """
    libc = ctypes.CDLL(None)
    for mapping in file_mappings(os.getpid()):
        if mapping.executable and os.path.basename(mapping.path).startswith(_COMPILER):
            libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.end - mapping.start), _MADV_DONTNEED)
    libc.malloc_trim(0)
