"""Names for the places where workers run, as short as tells them apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from tracer.facts import Place

_SHORT_ID = 12  # characters of a container's id, as `docker ps` prints


def place_names(places: Iterable[Place]) -> dict[Place, str]:
    """Return a name for each place, all different: `shop`; `shop (3f2a91b04c77)` where two have that name."""
    found: dict[str, Place] = {}
    left = list(dict.fromkeys(places))
    for form in _FORMS:
        alike: dict[str, list[Place]] = {}
        for place in left:
            alike.setdefault(form(place), []).append(place)
        left = []
        for name, same in alike.items():
            if len(same) == 1 and name not in found:
                found[name] = same[0]
            else:
                left += same
    for place in left:  # a container is named like another one's whole description
        numbered = (f"{_whole_name(place)} #{number}" for number in itertools.count(2))
        found[next(name for name in numbered if name not in found)] = place
    return {place: name for name, place in found.items()}


def place_name(place: Place) -> str:
    """Return the shortest name of a place, which others may have: the container's, or its id, or the cgroup's."""
    short_id = place.container_id and place.container_id[:_SHORT_ID]
    unit = (place.cgroup or "").rstrip("/").rpartition("/")[2]
    return _with_root(place, place.container or short_id or place.namespaces or unit)


def _longer_name(place: Place) -> str:
    if place.container is not None and place.container_id is not None:
        return _with_root(place, f"{place.container} ({place.container_id[:_SHORT_ID]})")
    return _with_root(place, place.container_id or place.cgroup or "")


def _whole_name(place: Place) -> str:
    return " ".join(f"{name}={value}" for name, value in place._asdict().items() if value is not None)


def _with_root(place: Place, name: str) -> str:
    root = "" if place.root in (None, "/") else place.root
    if name:
        return f"{name}:{root}" if root else name
    return root or ("(host)" if place.cgroup is not None or place.root is not None else "(unknown)")


_FORMS: tuple[Callable[[Place], str], ...] = (place_name, _longer_name, _whole_name)
