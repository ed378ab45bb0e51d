"""Finds the workers to trace from the names the user gives: `php-fpm`, `php-fpm:www`, or a PID."""

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
_FPM_SAPI = "fpm-fcgi"
_FASTCGI = (_FPM_SAPI, "cgi-fcgi")
# The parent accepts connections as its children do (sapi/cli/php_cli_server.c, PHP 8.2), or goes on with its script.
_PARENTS_SERVE = ("cli-server", "cli")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Workers that run one PHP binary. If there is a master, workers it forks later belong to the target too."""

    named: str  # what the user wrote
    php: Php
    sapi: str | None  # None: it could not be read
    master: Process | None  # None: one process without its master
    workers: tuple[Process, ...]
    pools: frozenset[str] | None  # only these; None: all

    @property
    def speaks_fastcgi(self) -> bool:
        """True if REQUEST_URI is in the FastCGI environment, or the SAPI is unknown."""
        return self.sapi is None or self.sapi in _FASTCGI

    @property
    def master_serves(self) -> bool:
        """True if the master is a worker, too: `php -S` with PHP_CLI_SERVER_WORKERS, a script that forks."""
        return self.master is not None and self.sapi in _PARENTS_SERVE

    @property
    def serving(self) -> tuple[Process, ...]:
        """The processes that serve requests: the workers, and the master if it is one, too."""
        return self.processes if self.master_serves else self.workers

    @property
    def resets_errors(self) -> bool:
        """True if each script starts with EG(exit_status) 0: sapi/fpm/fpm/fpm_main.c, PHP 8.2, but not cgi_main.c."""
        return self.sapi == _FPM_SAPI

    @property
    def processes(self) -> tuple[Process, ...]:
        """The master and the workers that existed when targets() was called."""
        return self.workers if self.master is None else (self.master, *self.workers)

    def wants(self, pool: str | None) -> bool:
        """True if this target includes workers of that pool."""
        return self.pools is None or pool in self.pools

    def close(self) -> None:
        """Close the PHP binary's file. Call it once."""
        self.php.image.close()


def targets(names: Sequence[str], *, symbols: bool = True) -> list[Target]:
    """The targets that the names mean, each worker in one of them only. The caller closes each target.

    `symbols=False` also accepts a PHP whose functions cannot be found. Raises NoTargetError if a name
    means nothing here, TargetGoneError if a PID does not exist, and NotPermittedError or
    UnsupportedError if a process cannot be traced; then nothing is left open.
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
    raise NoTargetError(
        f"cannot trace {name!a}: it names no target. Write php-fpm (every master on this host), php-fpm:POOL, or a PID."
    )


def _add(found: list[Target], new: Target) -> None:
    """Add a target, or merge it with one that is there, so that each worker is in one target only.

    If 12 is a worker of master 10, then both `12 10` and `10 12` become the target 10. `php-fpm:www php-fpm:shop`
    becomes one target with two pools. The file of a dropped target is closed.
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
        raise TargetGoneError(f"cannot trace process {pid}: there is no such process. Check the PID.")
    php = _php_of(process, symbols=symbols)
    sapi = processes.sapi_name(pid, php)
    workers = tuple(processes.children(process))
    if workers or _is_master(process):
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
            where = (
                "the php-fpm master here does not have it"
                if masters == 1
                else f"none of {masters} php-fpm masters has it"
            )
            names = ascii(", ".join(sorted(every_pool)))[1:-1]
            advice = f"Choose from: {names}." if names else "No pool was found: name the PID of a master."
            raise NoTargetError(f"cannot trace pool {pool!a}: {where}. {advice}")
        undo.pop_all()
    return found


def _masters(*, symbols: bool) -> Iterator[tuple[Process, Php]]:
    """Every php-fpm master that can be traced; the caller closes each PHP.

    If none can, raises the reason of the first one. NoTargetError if no master is running.
    """
    some = False
    refused: list[PhptraceError] = []
    for process in processes.processes():
        if not _is_master(process):
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
        f"cannot find a php-fpm master: no process in /proc is titled {MASTER_TITLE!r}"
        " and has PHP's request functions in its executable. Start php-fpm, or name a PID."
    )


def _is_master(process: Process) -> bool:
    """True for a php-fpm master. A worker that was just forked still has its master's title, and is none."""
    if not process.title.startswith(MASTER_TITLE):
        return False
    parent = processes.process(process.parent_pid)
    return not (
        parent is not None
        and parent.title.startswith(MASTER_TITLE)
        and parent.executable is not None
        and parent.executable == process.executable
    )


def _php_of(process: Process, *, symbols: bool) -> Php:
    try:
        image = processes.open_executable(process.pid)
    except FileNotFoundError as exc:
        raise TargetGoneError(
            f"cannot trace process {process.pid}: it has ended, or is a kernel thread. Check the PID."
        ) from exc
    except PermissionError as exc:
        raise NotPermittedError(
            f"cannot read process {process.pid}: {exc.strerror}, since that requires CAP_SYS_PTRACE. {processes.GRANTS}"
        ) from exc
    with contextlib.ExitStack() as undo:
        undo.callback(image.close)
        bare = None if symbols else php_binary.without_symbols(image, "its functions cannot be found")
        if not php_binary.is_php(image) and bare is None:
            raise UnsupportedError(
                f"cannot trace process {process.pid}: it runs {image.shown}, which is not PHP (it has no symbol"
                " php_request_startup). Name php-fpm, or the PID of a process that runs PHP."
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
