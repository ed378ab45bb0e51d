"""The recordings that a verb was given."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tracer.commands.messages import notice
from tracer.recording.reader import Reader


def recordings_of(files: Sequence[str], stack: contextlib.ExitStack) -> list[Reader]:
    """Open each recording, once however often it is named. The stack closes them.

    Raises RecordingError as Reader does.
    """
    found: dict[tuple[int, int], Reader] = {}
    for path in files:
        recording = stack.enter_context(Reader(path))
        if found.setdefault(recording.identity, recording) is not recording:
            notice(f"{path} was named twice: its requests count once")
    return list(found.values())
