"""From what the user names (`php-fpm`, `php-fpm:www`, a PID) to the workers that are to be traced."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence

from tracer.errors import NoTargetError, NotPermittedError, PhptraceError, TargetGoneError, UnsupportedError
from tracer.targets import php as php_binary
from tracer.targets import processes
from tracer.targets.fpm_config import fpm_pools
from tracer.targets.php import Php
from tracer.targets.processes import MASTER_TITLE, Process

FPM = "php-fpm"
_FASTCGI = ("fpm-fcgi", "cgi-fcgi")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Workers that run one PHP binary. With a master, workers it forks later belong to it too."""

    named: str  # what the user wrote
    php: Php
    sapi: str | None
    master: Process | None
    workers: tuple[Process, ...]
    pools: frozenset[str] | None  # only these; None: all

    @property
    def speaks_fastcgi(self) -> bool:
        """Whether REQUEST_URI is to be had from the FastCGI environment; unknown counts as yes."""
        return self.sapi is None or self.sapi in _FASTCGI

    @property
    def processes(self) -> tuple[Process, ...]:
        """Master and workers, as far as they were there when the target was resolved."""
        return self.workers if self.master is None else (self.master, *self.workers)

    def wants(self, pool: str | None) -> bool:
        """True if workers of that pool are to be traced."""
        return self.pools is None or pool in self.pools

    def close(self) -> None:
        """Close the PHP binary's file. Call it once."""
        self.php.image.close()


def targets(names: Sequence[str], *, symbols: bool = True) -> list[Target]:
    """The targets that the names mean, each worker in one of them. The caller closes each target.

    Without `symbols`, also a PHP whose functions cannot be found. Raises NoTargetError if a name
    means nothing here, TargetGoneError for a PID that does not exist, NotPermittedError or
    UnsupportedError for a process that cannot be traced; then nothing is left open.
    """
    found: list[Target] = []
    try:
        for name in names:
            for target in _named(name, symbols=symbols):
                _add(found, target)
    except BaseException:
        for target in found:
            target.close()
        raise
    return found


def _named(name: str, *, symbols: bool) -> list[Target]:
    kind, colon, pool = name.partition(":")
    if re.fullmatch(r"[0-9]+", name):
        return [_by_pid(int(name[:4000]), symbols=symbols)]
    if kind == FPM and (pool or not colon):
        return _by_title(name, pool or None, symbols=symbols)
    raise NoTargetError(f"{name!a} names no target. Write php-fpm (every master on this host), php-fpm:POOL, or a PID.")


def _add(found: list[Target], new: Target) -> None:
    """Add a target, or merge it with those that are there, so that each worker is in one target only.

    With 12 a worker of master 10: `12 10` and `10 12` are the target 10, and `php-fpm:www php-fpm:shop` is one
    target with two pools. Whichever target is dropped, its file is closed.
    """
    pids = {p.pid for p in new.workers}
    if new.master is None:
        if any(pids <= {p.pid for p in old.workers} for old in found):
            new.close()
        else:
            found.append(new)
        return
    for index in reversed(range(len(found))):
        if found[index].master is None and {p.pid for p in found[index].workers} <= pids:
            found.pop(index).close()
    for index, old in enumerate(found):
        if old.master is not None and old.master.pid == new.master.pid:
            known = {p.pid for p in old.workers}
            pools = None if old.pools is None or new.pools is None else old.pools | new.pools
            workers = old.workers + tuple(p for p in new.workers if p.pid not in known)
            found[index] = dataclasses.replace(old, pools=pools, workers=workers)
            new.close()
            return
    found.append(new)


def _by_pid(pid: int, *, symbols: bool) -> Target:
    process = processes.process(pid)
    if process is None:
        raise TargetGoneError(f"there is no process {pid}: it has ended, or never was")
    php = _php_of(process, symbols=symbols)
    sapi = processes.sapi_name(pid, php)
    workers = tuple(processes.children(process))
    if workers or process.title.startswith(MASTER_TITLE):
        return Target(str(pid), php, sapi, process, workers, None)
    return Target(str(pid), php, sapi, None, (process,), None)


def _by_title(name: str, pool: str | None, *, symbols: bool) -> list[Target]:
    """One target a master; with `pool`, only masters that have it."""
    found: list[Target] = []
    every_pool: set[str] = set()
    masters = 0
    asked_for = None if pool is None else frozenset((pool,))
    with contextlib.ExitStack() as undo:
        for master, php in _masters(symbols=symbols):
            with contextlib.ExitStack() as closing:
                closing.callback(php.image.close)
                masters += 1
                workers = processes.children(master)
                pools = fpm_pools(master) | {p.pool for p in workers if p.pool}
                every_pool |= pools
                if pool is None or pool in pools:
                    sapi = processes.sapi_name(master.pid, php)
                    mine = tuple(p for p in workers if pool is None or p.pool == pool)
                    found.append(Target(name, php, sapi, master, mine, asked_for))
                    undo.enter_context(closing.pop_all())
        if not found:
            names = ascii(", ".join(sorted(every_pool)) or "none")[1:-1]
            raise NoTargetError(
                f"none of the {masters} php-fpm master(s) here has a pool {pool!r}. Pools found: {names}."
            )
        undo.pop_all()
    return found


def _masters(*, symbols: bool) -> Iterator[tuple[Process, Php]]:
    """Every php-fpm master that can be traced; the caller closes each PHP.

    Raises why the first one cannot be traced if none can, and NoTargetError if there is none.
    """
    some = False
    refused: list[PhptraceError] = []
    for process in processes.processes():
        if not process.title.startswith(MASTER_TITLE):
            continue
        try:
            php = _php_of(process, symbols=symbols)
        except TargetGoneError:
            continue
        except (UnsupportedError, NotPermittedError) as exc:
            refused.append(exc)
            continue
        some = True
        yield process, php
    if some:
        return
    if refused:
        raise refused[0]
    raise NoTargetError(
        f"no php-fpm master is running here: none of the processes in /proc is titled {MASTER_TITLE!r}"
        " and has PHP's request functions in its executable. Start php-fpm, or name a PID."
    )


def _php_of(process: Process, *, symbols: bool) -> Php:
    try:
        image = processes.open_executable(process.pid)
    except FileNotFoundError as exc:
        raise TargetGoneError(f"process {process.pid} has ended, or is a kernel thread") from exc
    except PermissionError as exc:
        raise NotPermittedError(
            f"may not look at process {process.pid}: {exc.strerror}; that takes CAP_SYS_PTRACE. {processes.GRANTS}"
        ) from exc
    with contextlib.ExitStack() as undo:
        undo.callback(image.close)
        bare = None if symbols else php_binary.without_symbols(image, "its functions cannot be found")
        if not php_binary.is_php(image) and bare is None:
            raise UnsupportedError(
                f"process {process.pid} runs {image.shown}, which is not PHP: it has no symbol php_request_startup"
            )
        try:
            php = php_binary.inspect(image)
        except UnsupportedError as exc:
            bare = None if symbols else php_binary.without_symbols(image, str(exc))
            if bare is None:
                raise
            php = bare
        undo.pop_all()
    return php
