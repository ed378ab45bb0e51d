"""Folds the variable parts of a uri, so that requests for the same page are one route."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_HEX = re.compile(r"(?=.*\d)[0-9a-f]{12,}", re.IGNORECASE)


def route_of(uri: str) -> str:
    """Return `/user/{n}/edit` for `/user/123/edit?tab=2`.

    Numbers, UUIDs and long hexadecimal parts become `{n}`, `{uuid}` and `{hex}`; the query string is dropped.
    """
    path = uri.split("?", 1)[0]
    return "/".join([_folded(part) for part in path.split("/")])


def _folded(part: str) -> str:
    if _NUMBER.fullmatch(part):
        return "{n}"
    if _UUID.fullmatch(part):
        return "{uuid}"
    return "{hex}" if _HEX.fullmatch(part) else part
