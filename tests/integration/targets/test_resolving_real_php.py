"""Targets as a user writes them, on real masters: found, refused, distinguished."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from fpm import TWO_WORKERS, Fpm

from tracer.errors import NoTargetError, TargetGoneError, UnsupportedError
from tracer.targets.resolve import targets


def test_every_master_and_its_pools_are_found(start_fpm: Callable[..., Fpm]) -> None:
    first = start_fpm(red=TWO_WORKERS)
    second = start_fpm(blue="pm = ondemand\npm.max_children = 2")

    masters = {target.master.pid: target for target in targets(["php-fpm"]) if target.master is not None}
    assert {first.master, second.master} <= set(masters)
    assert sorted(p.pid for p in masters[first.master].workers) == sorted(first.workers())
    assert masters[first.master].sapi == "fpm-fcgi"
    (idle,) = targets(["php-fpm:blue"])
    assert (idle.master is not None, idle.workers) == (True, ())


def test_an_unknown_pool_is_refused_with_the_names_of_those_there_are(start_fpm: Callable[..., Fpm]) -> None:
    start_fpm(green="pm = ondemand\npm.max_children = 1")

    with pytest.raises(NoTargetError, match=r"'purple'.*green"):
        targets(["php-fpm:purple"])


def test_two_names_for_the_same_workers_are_one_target(fpm: Fpm) -> None:
    found = targets([str(fpm.master), str(fpm.workers()[0]), str(fpm.master)])

    assert len(found) == 1


def test_a_pid_that_is_gone_is_told_apart_from_one_that_is_not_php() -> None:
    with pytest.raises(TargetGoneError):
        targets(["4194303"])
    with pytest.raises(UnsupportedError, match="not PHP"):
        targets([str(os.getpid())])
