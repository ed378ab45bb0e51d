"""A flame as a file for https://www.speedscope.app, which also runs offline. It cannot show a difference."""

from __future__ import annotations

import json
from typing import TextIO

from tracer.analysis.flame.node import Flame
from tracer.reporters.flame.folded import stacks
from tracer.reporters.json_report import json_text

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def render(flame: Flame, out: TextIO) -> None:
    """Write one sampled profile, in bytes; for a difference, that of the recording after.

    A name is `Repo::hydrate /srv/app/repo.php:88`. File and line are not split off: names may be anything.
    """
    frames: dict[str, int] = {}
    path: list[int] = []
    samples: list[list[int]] = []
    weights: list[int] = []
    for nodes, _, own in stacks(flame):
        del path[len(nodes) - 1 :]
        for node in nodes[len(path) :]:
            path.append(frames.setdefault(str(json_text(node.detail or node.label)), len(frames)))
        if own > 0:
            samples.append(path.copy())
            weights.append(own)
    title = str(json_text(flame.title))
    profile = {
        "type": "sampled",
        "name": title if flame.root.before is None else f"{title} (after; speedscope shows no differences)",
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
    document = {
        "$schema": SCHEMA,
        "exporter": "phptrace",
        "name": title,
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": [profile],
    }
    json.dump(document, out)
    out.write("\n")
