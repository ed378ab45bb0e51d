"""Finds the workers to trace from the names the user gives: `php-fpm`, `php-fpm:www`, a container, or a PID."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from tracer.errors import NoTargetError, NotPermittedError, PhptraceError, TargetGoneError, UnsupportedError
from tracer.targets import containers, processes
from tracer.targets import php as php_binary
from tracer.targets.elf import Image
from tracer.targets.fpm_config import fpm_pools
from tracer.targets.php import Php
from tracer.targets.processes import MASTER_TITLE, Process

FPM = "php-fpm"
CONTAINER, CGROUP = "container", "cgroup"
_FPM_SAPI = "fpm-fcgi"
_FASTCGI = (_FPM_SAPI, "cgi-fcgi")
# PHP's command line: its one request began when it started.
_ONE_REQUEST = ("cli", "phpdbg", "micro")
_MOST_NAMED = 5  # refused processes, or containers of one name, in one error
_MOST_CHOICES = 20  # containers, or cgroups
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
        """True if REQUEST_URI is in the FastCGI environment; of an unknown SAPI, if the binary has one that does."""
        return self.php.fastcgi if self.sapi is None else self.sapi in _FASTCGI

    @property
    def one_request(self) -> bool:
        """True if its only request began before it could be traced: a script on PHP's command line."""
        return self.sapi in _ONE_REQUEST

    @property
    def pid(self) -> int:
        """Of its master, or of its first process if it has none."""
        return self.processes[0].pid

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


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A process that the user meant, and that is not traced."""

    named: str  # what the user wrote
    pid: int
    error: PhptraceError  # why

    def __str__(self) -> str:
        """A sentence for the user."""
        return f"process {self.pid} is not traced: {self.error}"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The processes that the names mean: each worker is in one target only. The caller calls close()."""

    targets: list[Target]
    refused: list[Refused]  # beside them; each once

    def close(self) -> None:
        """Close the targets' files. Call it once."""
        for target in self.targets:
            target.close()


def find(names: Sequence[str], *, symbols: bool = False, only: Collection[int] | None = None) -> Found:
    """Find the processes that the names mean. Unless `symbols`, a PHP whose functions cannot be found is a target, too.
    `only`: of masters that are not named by PID, those with these PIDs; None for all.

    Raises NoTargetError if a name means nothing here (with `only`, if no name means any of them), TargetGoneError if a
    PID does not exist, and NotPermittedError or UnsupportedError if a PID, or every process of a name, cannot be
    traced; then nothing is left open.
    """
    found = Found([], [])
    unmet: NoTargetError | None = None
    try:
        for name in names:
            try:
                meant = _named(name, symbols=symbols, only=only)
            except NoTargetError as exc:
                if only is None:
                    raise
                unmet = exc  # it may mean other masters
                continue
            for each in meant:
                if isinstance(each, Target):
                    _add(found.targets, each)
                elif each.pid not in [known.pid for known in found.refused]:
                    found.refused.append(each)
        if unmet is not None and not found.targets:
            raise unmet
    except BaseException:
        found.close()
        raise
    return found


def targets(names: Sequence[str], *, symbols: bool = True) -> list[Target]:
    """The targets that find() finds; the caller closes each. Use find() to learn which processes are refused."""
    return find(names, symbols=symbols).targets


def _named(name: str, *, symbols: bool, only: Collection[int] | None) -> Sequence[Target | Refused]:
    kind, colon, pool = name.partition(":")
    if is_pid(name):
        return [_by_pid(int(name[:4000]), symbols=symbols)]
    if kind == FPM and (pool or not colon):
        return _by_title(name, pool or None, symbols=symbols, only=only)
    if kind in (CONTAINER, CGROUP) and pool:
        return _by_title(name, None, symbols=symbols, only=_masters_there(kind, pool, only))
    raise NoTargetError(
        f"cannot trace {name!a}: it names no target. Write php-fpm (every master on this host), php-fpm:POOL,"
        " container:NAME, container:ID, cgroup:PATH, or a PID."
    )


def _masters_there(kind: str, wanted: str, only: Collection[int] | None) -> frozenset[int]:
    """Pids of the php-fpm masters in that container or cgroup. NoTargetError if there is none, or it is ambiguous."""
    every = [(pid, containers.surroundings(pid)) for pid in sorted(master_pids()) if only is None or pid in only]
    if kind == CGROUP:
        path = containers.cgroup_path(wanted)
        found = frozenset(pid for pid, where in every if where.is_in_cgroup(path))
        if not found:
            raise NoTargetError(_nothing_there(kind, wanted, (w.cgroup for _, w in every if w.cgroup is not None)))
        return found
    named = [(pid, where) for pid, where in every if where.is_container(wanted)]
    # A container chooses its host name: one that has the name from its runtime comes first.
    named = [one for one in named if not one[1].is_host_name or one[1].is_container_id(wanted)] or named
    if not named:
        raise NoTargetError(_nothing_there(kind, wanted, (w.shown for _, w in every if w.in_container)))
    shown = {where.container_id or where.name: ascii(where.shown)[1:-1] for _, where in named}
    if len(shown) > 1:
        raise NoTargetError(
            f"cannot trace {kind} {wanted!a}: {len(shown)} containers with a php-fpm master have that name or id."
            f" Write a longer part of the id of one of them: {', '.join(sorted(shown.values())[:_MOST_NAMED])}."
        )
    return frozenset(pid for pid, _ in named)


def _nothing_there(kind: str, wanted: str, known: Iterable[str]) -> str:
    """The text of an error, with what there is."""
    every = sorted({ascii(name)[1:-1] for name in known})
    names = ", ".join(every[:_MOST_CHOICES])
    more = f", and {len(every) - _MOST_CHOICES} more" if len(every) > _MOST_CHOICES else ""
    advice = (
        f"Choose from: {names}{more}." if names else f"No php-fpm master here is in a {kind}: name php-fpm, or a PID."
    )
    return f"cannot trace {kind} {wanted!a}: no php-fpm master here is in it. {advice}"


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


def _by_title(
    name: str, pool: str | None, *, symbols: bool, only: Collection[int] | None
) -> Sequence[Target | Refused]:
    """One target a master; with `pool`, only masters that have it. Behind them, those that are meant and refused."""
    found: list[Target] = []
    refused: list[Refused] = []
    every_pool: set[str] = set()
    masters = 0
    asked_for = None if pool is None else frozenset((pool,))
    with contextlib.ExitStack() as undo:
        for master, php in _masters(symbols=symbols, only=only):
            with contextlib.ExitStack() as closing:
                masters += 1
                workers = processes.children(master)
                pools = fpm_pools(master) | {p.pool for p in workers if p.pool}
                if isinstance(php, PhptraceError):
                    # One that may not be read may have a pool that its title and its workers do not show.
                    if pool is None or pool in pools or (not pools and isinstance(php, NotPermittedError)):
                        refused.append(Refused(name, master.pid, php))
                    continue
                closing.callback(php.image.close)
                every_pool |= pools
                if pool is None or pool in pools:
                    sapi = processes.sapi_name(master.pid, php)
                    mine = tuple(p for p in workers if pool is None or p.pool == pool)
                    found.append(Target(name, php, sapi, master, mine, asked_for))
                    undo.enter_context(closing.pop_all())
        if not found and refused:
            raise _of_all(refused)
        if not found:
            where = (
                "the php-fpm master here does not have it"
                if masters == 1
                else f"none of {masters} php-fpm masters has it"
            )
            names = ascii(", ".join(sorted(every_pool)))[1:-1]
            advice = f"Choose from: {names}." if names else "No pool was found: name the PID of a master."
            advice += " If it starts workers on demand, send it a request first."
            raise NoTargetError(f"cannot trace pool {pool!a}: {where}. {advice}")
        undo.pop_all()
    return [*found, *refused]


def _of_all(refused: Sequence[Refused]) -> PhptraceError:
    """The error of the first one, which also names the others: only a few, since any user can make such processes."""
    first, *others = refused
    if not others:
        return first.error
    text = " ".join(f"Also, {other}" for other in others[: _MOST_NAMED - 1])
    more = len(others) - _MOST_NAMED + 1
    return type(first.error)(f"{first.error} {text}" + (f" And {more} more are not traced." if more > 0 else ""))


def _masters(*, symbols: bool, only: Collection[int] | None) -> Iterator[tuple[Process, Php | PhptraceError]]:
    """Every php-fpm master, with its PHP, which the caller closes, or with the reason why it cannot be traced.

    NoTargetError if no master is running.
    """
    some = False
    for process in processes.processes():
        if not _is_master(process) or (only is not None and process.pid not in only):
            continue
        try:
            php: Php | PhptraceError = _php_of(process, symbols=symbols)
        except TargetGoneError:
            continue
        except (UnsupportedError, NotPermittedError) as exc:
            php = exc
        some = True
        yield process, php
    if some:
        return
    raise NoTargetError(
        f"cannot find a php-fpm master: no process in /proc is titled {MASTER_TITLE!r}. Start php-fpm, or name a PID."
    )


def master_pids() -> frozenset[int]:
    """Pids of all processes that call themselves a php-fpm master."""
    return frozenset(process.pid for process in processes.processes() if _is_master(process))


def is_pid(name: str) -> bool:
    """True if what the user wrote is a PID, and not a name."""
    return re.fullmatch(r"[0-9]+", name) is not None


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
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise TargetGoneError(
            f"cannot trace process {process.pid}: it has ended, or is a kernel thread. Check the PID."
        ) from exc
    except PermissionError as exc:
        raise NotPermittedError(
            f"cannot read process {process.pid}: {exc.strerror}, since that requires CAP_SYS_PTRACE. {processes.GRANTS}"
        ) from exc
    with contextlib.ExitStack() as undo:
        undo.callback(image.close)
        if not php_binary.is_php(image):
            raise _not_php(process, image)
        try:
            php = php_binary.inspect(image)
        except UnsupportedError as exc:
            bare = None if symbols else php_binary.without_symbols(image, str(exc))
            if bare is None:
                raise
            php = bare
        undo.pop_all()
    return php


def _not_php(process: Process, image: Image) -> UnsupportedError:
    library = processes.php_library(process.pid)
    if library is None:
        return UnsupportedError(
            f"cannot trace process {process.pid}: it runs {image.shown}, which is not PHP. Name php-fpm, or the PID of"
            " a process that runs PHP."
        )
    return UnsupportedError(
        f"cannot trace process {process.pid}: its PHP is the library {library}, loaded into {image.shown}, as Apache's"
        " mod_php is, and phptrace traces PHP that is a program of its own. Serve the site with php-fpm."
    )
