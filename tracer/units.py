"""Sizes, durations and foreign text, as people write and read them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SIZE_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}

# Characters that would move the cursor, change colours, reorder the line or cannot be seen:
# C0, DEL, C1, Unicode's line and paragraph separators, bidirectional and zero-width controls, tags,
# and the surrogates that stand for bytes that are not UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def parse_size(text: str) -> int:
    """Bytes of `64K`, `1.5M`, `2GiB` or `4096`; ValueError if it is none of these. K is 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 4096, 64K, 1.5M or 2G")
    return round(float(match[1]) * _SIZE_FACTORS[match[2].upper()])


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1.5h`, `250ms` or `30`; ValueError if it is none of these."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 250ms, 30s, 5m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def show_bytes(size: float | None, *, signed: bool = False) -> str:
    """`1.5 MiB`, with a sign if asked; `-` for what was not measured."""
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
    """`850 us`, `12.3 ms`, `4.56 s`; `-` for what was not measured."""
    if nanoseconds is None:
        return "-"
    if nanoseconds < 999_500:
        return f"{nanoseconds / 1e3:.0f} us"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    return f"{nanoseconds / 1e9:.2f} s"


def printable(text: str) -> str:
    """The text with everything a terminal or an editor might act on shown as an escape.

    A backslash is doubled, so that no two texts look the same. Bytes that were not UTF-8 (Python's
    lone surrogates, PEP 383) show as the byte they were.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return _UNSAFE.sub(_escape, text.replace("\\", "\\\\"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
