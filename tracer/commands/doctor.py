"""phptrace doctor: check what can be traced here, and show how to fix what cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tracer.doctor import checks, exit_code, usable
from tracer.reporters import checklist


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(targets: Sequence[str], as_json: bool) -> None:
    """Check this host; show how to fix what is missing.

    Checks whether this host can be traced, and everything that tracing TARGET needs. TARGET defaults to php-fpm.
    The exit code is the one `phptrace attach` would end with.
    """
    found = list(checks(targets))
    render = checklist.render_json if as_json else checklist.render
    render(found, sys.stdout, usable(found))
    click.get_current_context().exit(exit_code(found))
