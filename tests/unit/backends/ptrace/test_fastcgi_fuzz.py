"""FastCGI streams of real programs, damaged at random: thousands of turns, which is too slow for every run.

For any input: no exception, a bounded buffer, only wanted parameters, and the next request is found. A seed gives
the same turns each time. test_fastcgi_streams.py has properties of any stream; these streams come from real web
servers, so that more of each stream is valid before its first fault.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tracer.backends.ptrace.fastcgi_parser import (
    Begun,
    Event,
    FastCgiReader,
    Malformed,
    Params,
)

TURNS = 20_000
STREAMS = Path(__file__).resolve().parents[3] / "streams"
WANTED = (b"SCRIPT_FILENAME", b"REQUEST_URI", b"REQUEST_METHOD", b"HTTP_USER_AGENT")
BOUND = 64 * 1024
# Completes any open record, and is not a record itself.
FLUSH = bytes(0xFFFF + 255 + 8 + 8)
SCRIPT = b"/srv/www/found.php"
PAIR = bytes([len(WANTED[0]), len(SCRIPT)]) + WANTED[0] + SCRIPT
NEXT = b"".join(
    struct.pack(">BBHHBB", 1, kind, 7, len(content), 0, 0) + content
    for kind, content in ((1, struct.pack(">HB5x", 1, 0)), (4, PAIR), (4, b""), (5, b""))
)
# Bodies, which are most of a recording, are cut to this, so that most of the damage matters.
BODY_BYTES = 600
HOT = (0, 1, 2, 4, 5, 8, 9, 0x0B, 0x0F, 0x7F, 0x80, 0x81, 0xFF)  # record types, and where lengths turn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_request_after_any_damage_is_found(seed: int) -> None:
    chance = random.Random(seed)
    streams = [shortened(path.read_bytes()) for path in sorted(STREAMS.glob("*.bin"))]
    begun = 0
    for _ in range(TURNS):
        begun += run(chance, damaged(chance, chance.choice(streams)))

    assert begun > TURNS


def shortened(stream: bytes) -> list[bytes]:
    """The records of a stream, its bodies cut."""
    records, at = [], 0
    while at < len(stream):
        version, kind, request_id, length, padding, reserved = struct.unpack_from(">BBHHBB", stream, at)
        content = stream[at + 8 : at + 8 + length]
        end = at + 8 + length + padding
        if kind == 5 and length > BODY_BYTES:
            content = content[:BODY_BYTES]
        header = struct.pack(">BBHHBB", version, kind, request_id, len(content), padding, reserved)
        records.append(header + content + stream[at + 8 + length : end])
        at = end
    return records


def damaged(chance: random.Random, records: list[bytes]) -> bytes:
    """The stream with up to eight faults, in its records or anywhere in its bytes."""
    records = list(records)
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(records))
        match chance.randrange(4):
            case 0 if len(records) > 1:
                del records[at]
            case 1:
                records.insert(at, chance.choice(records))
            case 2:
                other = chance.randrange(len(records))
                records[at], records[other] = records[other], records[at]
            case _:  # a byte of a header, where little is changed and much is meant
                header = bytearray(records[at])
                header[chance.randrange(8)] = chance.choice(HOT)
                records[at] = bytes(header)
    stream = bytearray(b"".join(records))
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(stream) + 1)
        size = chance.choice((1, 1, 2, 8, 16, chance.randrange(1, 3000)))
        match chance.randrange(6):
            case 0 if at < len(stream):
                stream[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(stream):
                stream[at] = chance.choice(HOT)
            case 2:
                del stream[at : at + size]
            case 3:
                stream[at:at] = stream[at : at + size]
            case 4:
                stream[at:at] = chance.randbytes(size)
            case _:
                del stream[max(at, 1) :]
    return bytes(stream)


def run(chance: random.Random, stream: bytes) -> int:
    """Feed the stream, and check what comes of it; return how many requests began."""
    limit = chance.choice((0, 1, 61, 4096, 1 << 20))
    one = FastCgiReader(WANTED, value_limit=limit)
    events: list[Event] = []
    for chunk in (*chunks(chance, stream), FLUSH):
        events += one.feed(chunk)
        assert one.buffered < BOUND, "the buffer is bounded"
    open_request = None
    for event in events:
        if isinstance(event, Begun):
            open_request = event.request_id
        elif isinstance(event, Malformed):
            open_request = None
        else:
            assert event.request_id == open_request, "an event belongs to the open request"
            if isinstance(event, Params):
                assert set(event.values) <= set(WANTED), "only what was wanted is kept"
                for value in event.values.values():
                    assert len(value.text) == min(value.length, limit), "a value is cut to the limit only"
    assert (
        one.malformed_count == sum(isinstance(event, Malformed) for event in events) > 0
    ), "malformed data is counted and reported"
    found = [event for chunk in chunks(chance, NEXT) for event in one.feed(chunk)]
    assert [type(event) for event in found] == [Begun, Params], "the next request is found"
    return sum(isinstance(event, Begun) for event in events)


def chunks(chance: random.Random, stream: bytes) -> list[bytes]:
    """The stream whole, byte by byte, as php reads it (header, then the rest), or cut anywhere."""
    sizes: Sequence[int] = chance.choice(((len(stream) or 1,), (1,), (8, 1, 3000), range(1, 20), range(1, 5000)))
    if sizes == (1,) and len(stream) > 3000:
        sizes = (1, 2, 7, 8, 997)
    pieces, at = [], 0
    while at < len(stream):
        size = chance.choice(sizes)
        pieces.append(stream[at : at + size])
        at += size
    return pieces
