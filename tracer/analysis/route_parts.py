"""The parts of a uri that can be told to be values by their form alone: numbers, dates, UUIDs, hashes, tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

QUERY = "?"  # in a list of parts: what follows are values of query parameters
SLUG = "{slug}"  # one of many in its place (route_tree.py)
LONG = "{long}"
MORE = "{more}"  # parts beyond MOST_PARTS
PLACEHOLDERS = frozenset(("{n}", "{date}", "{uuid}", "{hex}", "{token}", SLUG, LONG, MORE))

_LONGEST = 80  # characters of a name
_SHORTEST_TOKEN = 20
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_LONGEST_VALUE = 300  # a value of more is not recognized
_LONGEST_PATH = 2048
MOST_PARTS = 24
_LONGEST_QUERY = 8192
_DIGIT = re.compile("[0-9]")
# No repetition can take what another one beside it could, so that no text takes long. A word such as `deadbeefcafe`
# is no hash: a digit is needed, and three for a token.
_VALUE = re.compile(
    r"(?:(?P<n>[0-9]+(?:,[0-9]+)*)"
    r"|(?P<date>[0-9]{4}-[0-9]{2}(?:-[0-9]{2}(?:T[0-9:.]+(?:Z|[+-][0-9:]+)?)?)?)"
    r"|(?P<uuid>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
    r"|(?P<hex>(?=[a-fA-F]*[0-9])[0-9a-fA-F]{12,})"
    r"|(?P<token>(?=(?:[a-zA-Z]*[0-9]){3})(?=[0-9]*[a-zA-Z])[0-9a-zA-Z]{20,}))"
    r"(?P<suffix>\.[a-zA-Z]{1,5})?"
)


def path_parts(path: str) -> list[str]:
    """The parts between the slashes of a path, with values as placeholders; at most 25 of them."""
    cut = len(path) > _LONGEST_PATH
    parts = (path[:_LONGEST_PATH] if cut else path).split("/")
    if cut:
        parts[-1] = MORE
    if len(parts) > MOST_PARTS + 1:
        parts[MOST_PARTS:] = [MORE]
    return [path_part(part) for part in parts]


def path_part(part: str) -> str:
    """One of them."""
    return folded(part) if len(part) > _LONGEST or _DIGIT.search(part) else part


def folded(part: str) -> str:
    """The placeholder of a part that is a value by its form; the part itself if it may be a name."""
    if part.isdecimal() and part.isascii():
        return "{n}"
    if len(part) < _SHORTEST_TOKEN and part[:1] not in _HEXADECIMAL:
        return part
    match = _VALUE.fullmatch(part) if len(part) <= _LONGEST_VALUE else None
    if match is None:
        return LONG if len(part) > _LONGEST else part
    if match["suffix"] is None:
        return f"{{{match.lastgroup}}}"
    kind = next(name for name, value in match.groupdict().items() if value is not None)
    return f"{{{kind}}}{match['suffix']}"


def query_values(query: str, names: Sequence[str]) -> list[str]:
    """The value of each parameter, in the order of `names`, and as a placeholder if it can be; "" if there is none.

    Of a parameter that comes twice the last one counts, as in PHP. Values stay encoded.
    """
    found = dict.fromkeys(names, "")
    for pair in query[:_LONGEST_QUERY].split("&"):
        name, _, value = pair.partition("=")
        if name in found:
            found[name] = folded(value)
    return list(found.values())
