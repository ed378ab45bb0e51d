"""Messages on stderr."""

from __future__ import annotations

import pytest

from tracer.commands.messages import notice


def test_a_message_keeps_its_lines_and_nothing_else_that_a_terminal_acts_on(capsys: pytest.CaptureFixture[str]) -> None:
    notice("r\x1b[31m.phptrace: 1 request\nLOST 13 requests: the ring buffer was full")

    said = capsys.readouterr()
    assert said.err == "phptrace: r\\x1b[31m.phptrace: 1 request\nLOST 13 requests: the ring buffer was full\n"
    assert said.out == ""
