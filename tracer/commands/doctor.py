"""phptrace doctor: what can be traced here, and the command that mends what cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tracer.doctor import checks, exit_code, usable
from tracer.reporters import checklist


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(targets: Sequence[str], as_json: bool) -> None:
    """Check everything that tracing TARGET (default: php-fpm) needs, and say what mends what is missing.

    The exit code is that which attach would give.
    """
    found = list(checks(targets))
    render = checklist.render_json if as_json else checklist.render
    render(found, sys.stdout, usable(found))
    click.get_current_context().exit(exit_code(found))
