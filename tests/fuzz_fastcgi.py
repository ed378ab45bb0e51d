"""Spoils the recorded FastCGI streams at random and feeds them: `python tests/fuzz_fastcgi.py [seconds [seed]]`.

Whatever comes: no exception, a bounded buffer, only what was asked for, and the next request is found. On a failure
the seed and the number of the iteration are printed; the same seed gives the same iterations.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tracer.backends.ptrace.fastcgi_parser import (  # noqa: E402 (needs the path above)
    Begun,
    Event,
    FastCgiReader,
    GaveUp,
    Params,
)

WANTED = (b"SCRIPT_FILENAME", b"REQUEST_URI", b"REQUEST_METHOD", b"HTTP_USER_AGENT")
BOUND = 64 * 1024
# Completes any record that may be open, and is itself none.
FLUSH = bytes(0xFFFF + 255 + 8 + 8)
SCRIPT = b"/srv/www/found.php"
PAIR = bytes([len(WANTED[0]), len(SCRIPT)]) + WANTED[0] + SCRIPT
NEXT = b"".join(
    struct.pack(">BBHHBB", 1, kind, 7, len(content), 0, 0) + content
    for kind, content in ((1, struct.pack(">HB5x", 1, 0)), (4, PAIR), (4, b""), (5, b""))
)
# Bodies, which are most of a recording, are cut to this, so that most of what is spoilt matters.
BODY_BYTES = 600
HOT = (0, 1, 2, 4, 5, 8, 9, 0x0B, 0x0F, 0x7F, 0x80, 0x81, 0xFF)  # record types, and where lengths turn


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    streams = [shortened(path.read_bytes()) for path in sorted((ROOT / "tests/streams").glob("*.bin"))]
    iterations = given_up = begun = fed_bytes = 0
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            stream = spoilt(chance, chance.choice(streams))
            one, events = run(chance, stream)
            iterations += 1
            given_up += one.given_up
            begun += sum(isinstance(event, Begun) for event in events)
            fed_bytes += len(stream)
    except BaseException:
        sys.stderr.write(f"seed {seed}, iteration {iterations}\n")
        raise
    sys.stdout.write(
        f"{iterations} iterations in {seconds:g} s, seed {seed}: {fed_bytes:,} bytes, {begun:,} requests begun, "
        f"{given_up:,} times given up, every time found again\n"
    )


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


def spoilt(chance: random.Random, records: list[bytes]) -> bytes:
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


def run(chance: random.Random, stream: bytes) -> tuple[FastCgiReader, list[Event]]:
    limit = chance.choice((0, 1, 61, 4096, 1 << 20))
    one = FastCgiReader(WANTED, value_limit=limit)
    events: list[Event] = []
    for chunk in (*chunks(chance, stream), FLUSH):
        events += one.feed(chunk)
        check(one.buffered < BOUND, "the buffer is bounded")
    open_request = None
    for event in events:
        if isinstance(event, Begun):
            open_request = event.request_id
        elif isinstance(event, GaveUp):
            open_request = None
        else:
            check(event.request_id == open_request, "an event belongs to the open request")
            if isinstance(event, Params):
                check(set(event.values) <= set(WANTED), "only what was wanted is kept")
                for value in event.values.values():
                    check(len(value.text) == min(value.length, limit), "a value is cut to the limit only")
    check(one.given_up == sum(isinstance(event, GaveUp) for event in events) > 0, "giving up is counted and said")
    found = [event for chunk in chunks(chance, NEXT) for event in one.feed(chunk)]
    check([type(event) for event in found] == [Begun, Params], "the next request is found")
    return one, events


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


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"does not hold: {what}")


if __name__ == "__main__":
    main()
