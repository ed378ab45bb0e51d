"""Small C programs: compiled, started, and each line that they print read."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from machine import require


def compiled(source: str, path: Path, *options: str) -> Path:
    """Compile the program, or with `-shared` the library, to `path`; skip the test if there is no compiler."""
    require("gcc")
    subprocess.run(["gcc", "-O1", "-o", path, "-x", "c", "-", *options], input=source, text=True, check=True)
    return path


class Program:
    """A running program. It does its next step when it gets a line, and then prints one."""

    def __init__(self, path: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.pid = self._process.pid

    def answer(self) -> list[int]:
        """The numbers in its next line."""
        assert self._process.stdout is not None
        return [int(word) for word in self._process.stdout.readline().split()]

    def go(self) -> None:
        """Have it do its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def step(self) -> list[int]:
        """Have it do its next step; return the numbers in the line that it prints then."""
        self.go()
        return self.answer()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def running(path: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Program]:
    program = Program(path, *arguments, env=env)
    try:
        yield program
    finally:
        program.stop()
