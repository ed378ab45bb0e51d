"""phptrace doctor: check what can be traced here, and show how to fix what cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tracer.backends.choose import BACKENDS, preferred
from tracer.doctor import checks, exit_code, usable
from tracer.reporters import checklist


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON, for programs.")
def doctor(targets: Sequence[str], as_json: bool) -> None:
    """Check this host; show how to fix what is missing.

    Check everything that tracing TARGET on this host needs. TARGET is php-fpm (every master on this host, the default),
    php-fpm:POOL, or a PID.

    The exit code is 0 if TARGET can be traced. Otherwise it is the exit code that `phptrace attach TARGET` would fail
    with.
    """
    found = list(checks(targets))
    backend = usable(found)
    if as_json:
        checklist.render_json(found, sys.stdout, backend)
    else:
        caveat = BACKENDS[backend].caveat if backend is not None else ""
        checklist.render(found, sys.stdout, backend, preferred=preferred(), caveat=caveat)
    click.get_current_context().exit(exit_code(found))
