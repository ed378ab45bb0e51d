"""Run the benchmarks and print one line per figure, with its budget."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bystanders, native, overhead, ptrace, scale, single, stacks, startup
from benchmarks.figures import Figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/run")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, and of the certainty")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"{os.cpu_count()} x {model[1] if model else '?'}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}")
    print("median [middle half] n; differences and ratios are taken between runs next to each other\n")
    found = []
    for figure in _all(quick=options.quick):
        print(figure.shown(), flush=True)
        found.append({**dataclasses.asdict(figure), "median": figure.median, "verdict": figure.verdict})
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


def _all(*, quick: bool) -> Iterator[Figure]:
    yield from startup.figures(2 if quick else 7)
    yield from single.figures(12 if quick else 60)
    yield from native.figures(6 if quick else 25, 1 if quick else 4)
    yield from stacks.figures(6 if quick else 25)
    yield from ptrace.figures(6 if quick else 25)
    yield from overhead.figures(3 if quick else 12, 5 if quick else 60)
    yield from bystanders.figures(2 if quick else 7)
    yield from scale.figures(2 if quick else 5)


if __name__ == "__main__":
    main()
