"""One PHP binary: its version, probe sites, heap and globals, and what could not be found."""

from __future__ import annotations

import dataclasses
import re

from tracer.errors import UnsupportedError
from tracer.targets import arch, machine_code
from tracer.targets.elf import Elf, Image
from tracer.targets.layouts import Layout, StackLayout, layout_of, stack_layout_of

# What an entry of Php.lacking begins with if exit() looks like a normal end.
EXIT_NOT_SEEN = "not seen: exit()"
_FUNCTION_BYTES = 64
_ACCESSOR_BYTES = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Hook:
    """A probe site."""

    address: int  # link address
    file_offset: int
    emulated: bool  # by the kernel; False: single-stepped, which takes longer (machine_code.Site)


@dataclasses.dataclass(frozen=True, slots=True)
class Hooks:
    """The probe sites of a request, in the order in which a request passes them; `end` is the last."""

    startup: Hook  # entry of php_request_startup()
    script_end: Hook  # entry of php_request_shutdown()
    end: Hook  # the very end of php_request_shutdown(): a USDT nop; or, if there is none,
    end_is_return: bool  # its entry, which needs a return probe
    teardown: Hook | None  # entry of zend_mm_shutdown(); None: Zend's peak is not measured
    output_end: Hook | None  # entry of php_output_deactivate(): PHP code is over, its last error is not freed yet
    exit_call: Hook | None  # entry of zend_throw_unwind_exit(); None: exit() is not seen


@dataclasses.dataclass(frozen=True, slots=True)
class Heap:
    """Where Zend's allocator keeps its counters: byte offsets in zend_mm_heap."""

    slot: int  # link address of the pointer to the heap, alloc_globals.mm_heap
    size: int
    peak: int
    real_size: int
    real_peak: int


@dataclasses.dataclass(frozen=True, slots=True)
class Php:
    """One PHP binary that can be traced. Addresses are link addresses; None: the symbol is missing.

    The function that opened `image` closes it, or calls Target.close().
    """

    image: Image
    version: tuple[int, int, int]
    hooks: Hooks | None  # None: it has no symbols, so only its system calls can be seen
    heap: Heap | None  # None: zend_mm_get_heap() or an accessor has an unknown form
    layout: Layout | None  # None: the version is not in the table
    sapi_globals: int | None
    core_globals: int | None
    executor_globals: int | None
    sapi_module: int | None
    stack: StackLayout | None  # None: call stacks cannot be read
    stack_lacking: str | None  # why they cannot be read
    lacking: tuple[str, ...]  # what cannot be measured, and why; a sentence each
    fastcgi: bool  # it was built with a SAPI that speaks FastCGI

    @property
    def unhooked(self) -> str | None:
        """Why its functions cannot be found; None if they are."""
        return self.stack_lacking if self.hooks is None else None

    @property
    def shown_version(self) -> str:
        """The version as text: `8.2.36`."""
        return ".".join(map(str, self.version))


def is_php(image: Image) -> bool:
    """True if the binary has PHP's request functions, or PHP's version; False also if it is not an ELF file."""
    try:
        elf = Elf(image)
        return elf.symbol("php_request_startup") is not None or _version(elf) is not None
    except UnsupportedError:
        return False


def without_symbols(image: Image, why: str) -> Php | None:
    """A PHP binary whose functions cannot be found, for the reason `why`; None if it is not PHP, or not x86-64.

    Enough for a backend that follows system calls only. The caller closes `image`.
    """
    try:
        elf = Elf(image)
        version = _version(elf)
    except UnsupportedError:
        return None
    if version is None or elf.machine != arch.ELF_MACHINE:
        return None
    lacking = f"not measured: Zend's figures, status, fatal errors. Reason: {why}"
    return Php(image, version, None, None, None, None, None, None, None, None, why, (lacking,), _fastcgi(elf))


def inspect(image: Image) -> Php:
    """Read a PHP binary. UnsupportedError, naming what is missing, if its requests cannot be followed.

    The caller closes `image`, also if this raises.
    """
    elf = Elf(image)
    version = _version(elf)
    where = image.shown + (f" (PHP {'.'.join(map(str, version))})" if version else "")
    if elf.machine != arch.ELF_MACHINE:
        raise UnsupportedError(
            f"cannot trace {where}: it is built for {elf.machine}; only x86-64 is supported."
            " Use a PHP built for x86-64."
        )
    if not elf.has_symbols:
        raise UnsupportedError(
            f"cannot find the functions of {where}: it is a static build without dynamic symbols."
            " Use --backend ptrace, which needs none."
        )
    if version is None:
        raise UnsupportedError(
            f"cannot trace {where}: it has no X-Powered-By text, so it is not PHP. Name a process that runs PHP."
        )
    if (elf.text_after(b"API20", 32) or b"").endswith(b",TS"):
        raise UnsupportedError(
            f"cannot trace {where}: it is a thread-safe (ZTS) build, whose data is elsewhere in each thread."
            " Use a non-thread-safe build, or --backend ptrace."
        )
    hooks = _hooks(elf, where)
    heap = _heap(elf)
    layout = layout_of(version)
    lacking = []
    if heap is None:
        lacking.append("not measured: Zend's heap (zend_mm_get_heap() has an unknown form)")
    if layout is None:
        lacking.append(
            f"not measured: status, memory_limit, fatal errors (PHP {version[0]}.{version[1]} is not in the table)"
        )
    if hooks.teardown is None:
        lacking.append("not measured: Zend's peak (no symbol zend_mm_shutdown)")
    if hooks.exit_call is None:
        lacking.append(f"{EXIT_NOT_SEEN}, which looks like a plain end (no symbol zend_throw_unwind_exit)")
    stack, stack_lacking = _stack(elf, version)
    return Php(
        image=image,
        version=version,
        hooks=hooks,
        heap=heap,
        layout=layout,
        sapi_globals=_address(elf, "sapi_globals"),
        core_globals=_address(elf, "core_globals"),
        executor_globals=_address(elf, "executor_globals"),
        sapi_module=_address(elf, "sapi_module"),
        stack=stack,
        stack_lacking=stack_lacking,
        lacking=tuple(lacking),
        fastcgi=_fastcgi(elf),
    )


def _fastcgi(elf: Elf) -> bool:
    """True if it has a setting of sapi/fpm and sapi/cgi (fpm_main.c, cgi_main.c; PHP 7.4 to 8.4), and of no other SAPI.

    The SAPIs' names prove nothing: opcache, which may be built in, lists them.
    """
    return elf.text_after(b"\0fastcgi.logging\0", 1) is not None


def _version(elf: Elf) -> tuple[int, int, int] | None:
    text = elf.text_after(b"X-Powered-By: PHP/", 32)
    match = re.match(rb"(\d+)\.(\d+)\.(\d+)", text or b"")
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _address(elf: Elf, name: str) -> int | None:
    symbol = elf.symbol(name)
    return None if symbol is None else symbol.address


def _hooks(elf: Elf, where: str) -> Hooks:
    startup, script_end = (_entry(elf, name) for name in ("php_request_startup", "php_request_shutdown"))
    missing = [
        name for name, hook in (("php_request_startup", startup), ("php_request_shutdown", script_end)) if hook is None
    ]
    if startup is None or script_end is None:
        raise UnsupportedError(
            f"cannot follow the requests of {where}: it has no symbol {' and no symbol '.join(missing)}."
            " Use --backend ptrace, which needs none."
        )
    end = _usdt(elf, "request__shutdown")
    return Hooks(
        startup=startup,
        script_end=script_end,
        end=end or script_end,
        end_is_return=end is None,
        teardown=_entry(elf, "zend_mm_shutdown"),
        output_end=_entry(elf, "php_output_deactivate"),
        exit_call=_entry(elf, "zend_throw_unwind_exit"),
    )


def _entry(elf: Elf, name: str) -> Hook | None:
    symbol = elf.symbol(name)
    if symbol is None:
        return None
    site = machine_code.entry_site(elf.code(symbol.address, _FUNCTION_BYTES))
    return None if site is None else _at(elf, symbol.address + site.offset, site.emulated)


def _usdt(elf: Elf, name: str) -> Hook | None:
    """The nop of a USDT probe; None if it has none. No semaphore is set: the request probes do not check one."""
    for address in elf.usdt_sites("php", name):
        if elf.code(address, 1) == b"\x90":
            return _at(elf, address, True)
    return None


def _at(elf: Elf, address: int, emulated: bool) -> Hook | None:
    offset = elf.file_offset(address)
    return None if offset is None else Hook(address, offset, emulated)


def _heap(elf: Elf) -> Heap | None:
    getter = elf.symbol("zend_mm_get_heap")
    usage = elf.symbol("zend_memory_usage")
    peak = elf.symbol("zend_memory_peak_usage")
    if getter is None or usage is None or peak is None:
        return None
    slot = machine_code.heap_slot(getter.address, elf.code(getter.address, _FUNCTION_BYTES))
    if slot is None:
        return None
    now = machine_code.accessor_offsets(usage.address, elf.code(usage.address, _FUNCTION_BYTES), slot)
    most = machine_code.accessor_offsets(peak.address, elf.code(peak.address, _FUNCTION_BYTES), slot)
    if now is None or most is None:
        return None
    return Heap(slot=slot, size=now[1], peak=most[1], real_size=now[0], real_peak=most[0])


def _stack(elf: Elf, version: tuple[int, int, int]) -> tuple[StackLayout | None, str | None]:
    """(layout of the call stack, None) if the binary's own accessors use that layout's offsets; else (None, why)."""
    layout = stack_layout_of(version)
    executor_globals = _address(elf, "executor_globals")
    shown = f"PHP {version[0]}.{version[1]}"
    if layout is None or executor_globals is None:
        missing = "is not in the table of layouts" if layout is None else "has no symbol executor_globals"
        return None, f"{shown} {missing}"
    scope, filename = elf.symbol("zend_get_executed_scope"), elf.symbol("zend_get_executed_filename_ex")
    if filename is None:  # PHP < 8.0
        filename = elf.symbol("zend_get_executed_filename")
    if scope is None or filename is None:
        return None, f"{shown} lacks the accessors with which its layout is checked"
    # The compiler loads EG's address and adds the offset, or loads from the sum of both.
    code = elf.code(scope.address, _ACCESSOR_BYTES)
    offset = layout.eg_current_execute_data
    based = machine_code.refers_to(scope.address, code, executor_globals) and offset.to_bytes(4, "little") in code
    current = based or machine_code.refers_to(scope.address, code, executor_globals + offset)
    if not current or layout.filename.to_bytes(4, "little") not in elf.code(filename.address, _ACCESSOR_BYTES):
        return None, f"{shown}: this build's structures are not those of its version"
    return layout, None
