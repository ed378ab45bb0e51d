"""From what the user names (`php-fpm`, `php-fpm:www`, a PID) to the workers that are to be traced."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Sequence

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
        return self.pools is None or pool in self.pools


def targets(names: Sequence[str], *, symbols: bool = True) -> list[Target]:
    """What the names mean, each worker once. Without `symbols`, also a PHP whose functions cannot be found.

    NoTargetError if a name means nothing here, TargetGoneError for a PID that does not exist,
    NotPermittedError or UnsupportedError for a process that cannot be traced.
    """
    found: list[Target] = []
    for name in names:
        kind, colon, pool = name.partition(":")
        if re.fullmatch(r"[0-9]+", name):
            _add(found, _by_pid(int(name[:4000]), symbols=symbols))
        elif kind == FPM and (pool or not colon):
            for target in _by_title(name, pool or None, symbols=symbols):
                _add(found, target)
        else:
            raise NoTargetError(
                f"{name!a} names no target. Write php-fpm (every master on this host), php-fpm:POOL, or a PID."
            )
    return found


def _add(found: list[Target], new: Target) -> None:
    """Appends it, or widens the target of the same master that is there already. Each worker stays in one."""
    if new.master is not None:
        theirs = {p.pid for p in new.workers}
        found[:] = [old for old in found if old.master is not None or not {p.pid for p in old.workers} <= theirs]
    for index, old in enumerate(found):
        known = {p.pid for p in old.workers}
        if new.master is None and known >= {p.pid for p in new.workers}:
            return
        if new.master is not None and old.master is not None and new.master.pid == old.master.pid:
            pools = None if old.pools is None or new.pools is None else old.pools | new.pools
            workers = old.workers + tuple(p for p in new.workers if p.pid not in known)
            found[index] = dataclasses.replace(old, pools=pools, workers=workers)
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
    masters: list[tuple[Target, set[str]]] = []
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
        workers = processes.children(process)
        pools = fpm_pools(process) | {p.pool for p in workers if p.pool}
        if pool is None:
            masters.append((Target(name, php, None, process, tuple(workers), None), pools))
        else:
            mine = tuple(p for p in workers if p.pool == pool)
            masters.append((Target(name, php, None, process, mine, frozenset((pool,))), pools))
    if not masters and refused:
        raise refused[0]
    if not masters:
        raise NoTargetError(
            f"no php-fpm master is running here: none of the processes in /proc is titled {MASTER_TITLE!r}"
            " and has PHP's request functions in its executable. Start php-fpm, or name a PID."
        )
    known = set().union(*(pools for _, pools in masters))
    if pool is not None and pool not in known:
        names = ascii(", ".join(sorted(known)) or "none")[1:-1]
        raise NoTargetError(
            f"none of the {len(masters)} php-fpm master(s) here has a pool {pool!r}. Pools found: {names}."
        )
    return [
        dataclasses.replace(target, sapi=processes.sapi_name(target.master.pid, target.php))
        for target, pools in masters
        if target.master is not None and (pool is None or pool in pools)
    ]


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
