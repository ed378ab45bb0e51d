"""Sizes, durations, counts and untrusted text, as people write and read them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%?")
_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_SIZE_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_SECONDS = 1e9  # 31 years: nanoseconds of it still fit in 63 bits
# Nouns that the reason of a Loss begins with (see counted_loss).
_LOST_NOUNS = re.compile(r"\b(request|worker|record|event|stack|birth|death|gap)s\b")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}

# Marks and letters that are invisible, though Unicode counts them as printable:
# Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 15) that str.isprintable() lets pass.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def parse_size(text: str) -> int:
    """Bytes of `64K`, `1.5M`, `2GiB` or `4096`; ValueError for any other text. K is 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size. Write 4096, 64K, 1.5M or 2G.")
    size = float(match[1]) * _SIZE_FACTORS[match[2].upper()]
    if size >= 1 << 64:
        raise ValueError(f"{text!r} is too large for a size. Write less than 16777216T")
    return round(size)


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1.5h`, `250ms` or `30`; ValueError for any other text."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration. Write 250ms, 30s, 5m or 1h.")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _MAX_SECONDS:
        raise ValueError(f"{text!r} is too long for a duration")
    return seconds


def parse_share(text: str) -> float:
    """0.02 for `2%` or `2`; ValueError for what is no percentage from 0 to 100."""
    match = _SHARE.fullmatch(text.strip())
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is not a percentage. Write 2% or 0.5%.")
    return float(match[1]) / 100


def show_bytes(size: float | None, *, signed: bool = False) -> str:
    """Format as `1.5 MiB`, with a plus sign if `signed`; None, which was not measured, is `-`."""
    if size is None:
        return "-"
    sign = "-" if size < 0 else "+" if signed and size > 0 else ""
    size = abs(size)
    if size < 1024:
        return f"{sign}{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 999.5 or unit == "TiB":
            break
    return f"{sign}{size:.0f} {unit}" if size >= 99.95 else f"{sign}{size:.1f} {unit}"


def show_duration(nanoseconds: float | None) -> str:
    """Format as `850 µs`, `12.3 ms` or `4.56 s`; None, which was not measured, is `-`."""
    if nanoseconds is None:
        return "-"
    if nanoseconds < 999_500:
        return f"{nanoseconds / 1e3:.0f} µs"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.2f} s"


def short_bytes(size: float | None) -> str:
    """Format as `749K` or `1.4M`, in at most 4 characters, 5 from a pebibyte on; None, not measured, is `-`."""
    if size is None:
        return "-"
    sign, size = "-" if size < 0 else "", abs(size)
    for unit in ("", "K", "M", "G", "T"):
        if size < 999.5 or unit == "T":
            break
        size /= 1024
    return f"{sign}{_two_digits(size)}{unit}"


def short_duration(nanoseconds: float | None) -> str:
    """Format as `850µs`, `1.4ms`, `12s`, `34min` or `3.4h`; None, which was not measured, is `-`."""
    if nanoseconds is None:
        return "-"
    sign, value = "-" if nanoseconds < 0 else "", abs(nanoseconds) / 1e3
    for unit, many in (("µs", 1e3), ("ms", 1e3), ("s", 60.0), ("min", 60.0)):
        if value < (many if many < 1e3 else 999.5):
            return f"{sign}{_two_digits(value)}{unit}"
        value /= many
    return f"{sign}{_two_digits(value)}h"


def _two_digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def counted(count: int, noun: str) -> str:
    """The count and its noun, in the plural unless there is one: `1 worker`, `1,009 workers`, `2 processes`."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def counted_loss(lost: int, why: str) -> str:
    """How much was lost and why. A reason begins with its noun in the plural: `requests: the ring buffer was full`."""
    noun, colon, rest = why.partition(":")
    if lost == 1:
        noun = _LOST_NOUNS.sub(r"\1", noun)
    possibly = "possibly " if noun.startswith("possibly ") else ""
    return f"{possibly}{lost:,} {noun.removeprefix('possibly ')}{colon}{rest}"


def printable(text: str, *, code: bool = False) -> str:
    """The text with an escape for every character that a terminal or editor might act on, or that is invisible.

    Escaped are controls, separators other than the space, bidirectional and zero-width characters. A
    backslash is doubled, so that no two texts look the same. Bytes that are not UTF-8 (Python's lone
    surrogates, PEP 383) show as the byte: `\\xff`; characters as `\\u009b`. With `code`, backslashes stay
    single: in names of PHP functions they separate namespaces.
    """
    if text.isprintable() and text.isascii() and (code or "\\" not in text):
        return text
    return "".join([char if _shows(char) or (code and char == "\\") else _escape(char) for char in text])


def printable_message(text: str) -> str:
    """A message of which a part may come from anywhere, for a terminal: what printable() escaped stays as it is."""
    return printable(text, code=True)


def _shows(char: str) -> bool:
    return char.isprintable() and char != "\\" and not _INVISIBLE.match(char)


def _escape(char: str) -> str:
    code = ord(char)
    if char in _SHORT:
        return _SHORT[char]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
