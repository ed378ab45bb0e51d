"""phptrace doctor: check what can be traced here, and show how to fix what cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tracer.backends.choose import BACKENDS, preferred
from tracer.doctor import Verdict, checks, verdict
from tracer.reporters import checklist
from tracer.reporters.checklist import Outcome, Traced


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON, for programs.")
def doctor(targets: Sequence[str], as_json: bool) -> None:
    """Check this host; show how to fix what is missing.

    Check everything that tracing TARGET on this host needs. TARGET is php-fpm (every master on this host, the default),
    php-fpm:POOL, container:NAME or container:ID (the masters in that container), cgroup:PATH, or a PID.

    The exit code is 0 if TARGET can be traced. Otherwise it is the exit code that `phptrace attach TARGET` would fail
    with.
    """
    found = list(checks(targets))
    decided = verdict(targets)
    outcome = _outcome(decided)
    if as_json:
        checklist.render_json(found, sys.stdout, outcome)
    else:
        checklist.render(found, sys.stdout, outcome, preferred=preferred())
    click.get_current_context().exit(decided.exit_code)


def _outcome(decided: Verdict) -> Outcome:
    if decided.assignment is None:
        return Outcome((), (), None if decided.error is None else str(decided.error))
    traced = tuple(
        Traced(part.name, tuple(target.pid for target in part.targets), BACKENDS[part.name].caveat)
        for part in decided.assignment.parts
    )
    return Outcome(traced, tuple((one.pid, str(one.error)) for one in decided.assignment.left_out), None)
