"""A flame graph as one SVG file, root on top. It is complete without scripts; with them it has zoom and search.

Names are untrusted. They are text in the file, never markup, and flame.js makes no markup of them.
Frames narrower than a thousandth of their caller are not drawn, and of the others only the widest, so that
the size of a file is bounded; the header lists how much was omitted.
"""

from __future__ import annotations

import colorsys
import dataclasses
import heapq
import html
import itertools
import math
import textwrap
import unicodedata
import zlib
from pathlib import Path
from typing import TextIO

from tracer.analysis.flame.node import Flame, Kind, Node
from tracer.units import counted, printable, show_bytes

_WIDTH = 1200  # without a script; with one, the window's
_MARGIN = 10
_ROW = 18
_TOOLBAR = 34  # flame.js puts search and zoom there
_BAR = 44  # and details of a frame there
_CELL = 7.25  # pixels of a character of 12 px monospace
_WRAP = 130  # characters of 12 px that fit the least width, 900 (flame.js)
_NARROWEST = 1000  # parts of its caller, which may be zoomed to the whole width
_MOST_FRAMES = 6000  # some 500 bytes each
_LONGEST = 1000  # characters of a name; the middle of a longer one is left out

# Hue, its spread by name, saturation, lightness. All light enough for black text.
_SHADES = {
    Kind.ROOT: (0.0, 0.0, 0.0, 0.84),
    Kind.ROUTE: (0.36, 0.02, 0.38, 0.70),
    Kind.SCRIPT: (0.50, 0.02, 0.40, 0.70),
    Kind.USER: (0.085, 0.03, 0.85, 0.69),
    Kind.INTERNAL: (0.61, 0.02, 0.75, 0.80),
    Kind.MARK: (0.0, 0.0, 0.0, 0.80),
}
_KINDS = {
    Kind.ROUTE: "route",
    Kind.SCRIPT: "script",
    Kind.USER: "PHP code",
    Kind.INTERNAL: "internal function",
    Kind.MARK: "not a function",
}
_CHANGES = {
    -0.5: "shrank by 50 % of the total",
    -0.05: "by 5 %",
    0.0: "same as before",
    0.05: "grew by 5 %",
    0.5: "by 50 %",
}
_GREW = (232, 80, 70)
_SAME = (247, 247, 247)
_SHRANK = (80, 140, 240)


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """A node where it is drawn, in bytes from the left and rows from the top."""

    node: Node
    start: int
    width: int
    depth: int


@dataclasses.dataclass(slots=True)
class _Hidden:
    """Nodes that are not drawn, and the bytes that went through the topmost of them."""

    frames: int = 0
    width: int = 0


def render(flame: Flame, out: TextIO) -> None:
    """Write the SVG. The colours of a difference show growth and shrinkage; others show kinds of frames."""
    frames, hidden = _frames(flame.root)
    header, top = _header(flame, frames, hidden)
    rows = max((frame.depth for frame in frames), default=1) + 1
    height = top + rows * _ROW + _BAR + 6
    out.write(
        f'<svg xmlns="http://www.w3.org/2000/svg" id="flame" width="100%" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="xMinYMin meet">\n'
        f"<title>{_text(flame.title)}</title>\n<style>{_cdata('flame.css')}</style>\n"
    )
    out.writelines(header)
    if not frames:
        out.write(f'<text class="total" x="{_MARGIN}" y="{top + _ROW}">nothing to show</text>\n</svg>\n')
        return
    style = "" if flame.root.before is None else ' class="difference"'
    out.write(
        f'<svg id="frames"{style} x="{_MARGIN}" y="{top}" width="{_WIDTH - 2 * _MARGIN}" height="{rows * _ROW}"'
        ' role="tree" aria-label="Frames">\n'
    )
    out.writelines(_drawn(frame, frames[0]) for frame in frames)
    out.write(f"</svg>\n<script>{_cdata('flame.js')}</script>\n</svg>\n")


def _frames(root: Node) -> tuple[list[_Frame], _Hidden]:
    """Frames to draw, each before its callees, the widest first. None are drawn if the root has no bytes."""
    widths = _widths(root)
    drawn = _drawn_nodes(root, widths)
    hidden = _Hidden()
    frames: list[_Frame] = []
    waiting = [_Frame(root, 0, widths[id(root)], 0)] if drawn else []
    while waiting:
        frame = waiting.pop()
        frames.append(frame)
        start, inside = frame.start, []
        children = [(widths[id(child)], child) for child in frame.node.children.values()]
        for width, child in sorted(children, key=lambda one: (-one[0], one[1].detail, one[1].label)):
            if id(child) in drawn:
                inside.append(_Frame(child, start, width, frame.depth + 1))
            elif width:
                hidden.frames += len(_nodes(child))
                hidden.width += width
            start += width
        waiting += reversed(inside)
    return frames, hidden


def _drawn_nodes(root: Node, widths: dict[int, int]) -> set[int]:
    """Ids of the widest nodes that are wide enough in their caller. The caller of a drawn node is drawn, too."""
    drawn: set[int] = set()
    order = itertools.count()  # of equals, those nearer to the root
    waiting = [(-widths[id(root)], next(order), root)] if widths[id(root)] else []
    while waiting and len(drawn) < _MOST_FRAMES:
        narrow, _, node = heapq.heappop(waiting)
        drawn.add(id(node))
        for child in node.children.values():
            width = widths[id(child)]
            if width and width * _NARROWEST >= -narrow:
                heapq.heappush(waiting, (-width, next(order), child))
    return drawn


def _nodes(root: Node) -> list[Node]:
    """The node and all below it, each before its children. Not recursive, since PHP stacks may be deep."""
    nodes = [root]
    for node in nodes:
        nodes += node.children.values()
    return nodes


def _widths(root: Node) -> dict[int, int]:
    """Widths of all nodes, by id(): the largest of its bytes, its bytes before, and the widths of its children."""
    widths: dict[int, int] = {}
    for node in reversed(_nodes(root)):
        inside = sum(widths[id(child)] for child in node.children.values())
        widths[id(node)] = max(node.bytes, node.before or 0, inside)
    return widths


def _header(flame: Flame, frames: list[_Frame], hidden: _Hidden) -> tuple[list[str], int]:
    """Title, total, notes and legend; and the y at which the frames begin."""
    written: list[str] = []
    y = 6

    def line(style: str, text: str, height: int) -> None:
        nonlocal y
        y += height
        written.append(f'<text class="{style}" x="{_MARGIN}" y="{y}">{html.escape(text)}</text>\n')

    for text in textwrap.wrap(printable(flame.title), 90):
        line("heading", text, 22)
    line("total", _total(flame.root), 22)
    y += 4
    notes = [printable(note) for note in flame.notes]
    if hidden.frames:
        share = 100 * hidden.width / frames[0].width
        most = f", or not among the {_MOST_FRAMES:,} widest" if len(frames) == _MOST_FRAMES else ""
        each = "Each" if hidden.frames > 1 else "It"
        notes.append(
            f"Not drawn: {counted(hidden.frames, 'frame')}, {show_bytes(hidden.width)} ({share:.1f} %)."
            f" {each} is narrower than {100 / _NARROWEST} % of its caller{most}."
        )
    for note in notes:
        for text in textwrap.wrap(note, _WRAP):
            line("note", text, 17)
    if frames:
        y += 24
        written.append(_legend(frames, y))
        y += 4 + _TOOLBAR
    return written, y + 6


def _total(root: Node) -> str:
    if root.before is None:
        return f"Total: {_exactly(root.bytes)}{_samples(root)}"
    return f"Total: {_difference(root)}{_samples(root)}"


def _legend(frames: list[_Frame], y: int) -> str:
    """The colours in use and their meaning. Swatches are characters, since only a browser knows how wide text is."""
    if frames[0].node.before is None:
        present = {frame.node.kind for frame in frames}
        keys = [(_shade(kind, ""), name) for kind, name in _KINDS.items() if kind in present]
        caption = "Width: bytes. A function is below its caller."
    else:
        keys = [(_change(share), name) for share, name in _CHANGES.items()]
        caption = "Width: the larger of before and after."
    swatches = "".join(
        f'<tspan class="swatch" dx="{18 if at else 0}" fill="{colour}">■</tspan><tspan dx="5">{name}</tspan>'
        for at, (colour, name) in enumerate(keys)
    )
    return f'<text class="legend" x="{_MARGIN}" y="{y}">{swatches}<tspan dx="28">{caption}</tspan></text>\n'


def _drawn(frame: _Frame, whole: _Frame) -> str:
    """The frame as an <svg> of its own, which clips its text to its width."""
    node = frame.node
    label, detail = (
        _shortened(printable(node.label, code=True)),
        _shortened(printable(node.detail or node.label, code=True)),
    )
    shown = _cut(label, int((frame.width / whole.width * (_WIDTH - 2 * _MARGIN) - 7) / _CELL))
    share = f"{100 * frame.width / whole.width:.2f} %"
    numbers = [f'data-start="{frame.start}" data-width="{frame.width}"']
    if whole.node.before is None:
        colour = _shade(node.kind, node.detail or node.label)
        title = f"{_exactly(node.bytes)} · {share}{_samples(node)}{_own(node)}"
        spoken = f"{label}, {show_bytes(node.bytes)}, {share}"
    else:
        colour = _change((node.bytes - (node.before or 0)) / whole.width)
        title = f"{_difference(node)} · {share} of the width{_samples(node)}"
        spoken = f"{label}, {show_bytes(node.bytes - (node.before or 0), signed=True)}"
        numbers.append(f'data-before="{node.before or 0}"')
    if node.bytes != frame.width:
        numbers.append(f'data-bytes="{node.bytes}"')
    if shown != label:
        numbers.append(f'data-label="{html.escape(label)}"')
    return (
        f'<svg class="frame {node.kind.value}" x="{100 * frame.start / whole.width:.4f}%" y="{frame.depth * _ROW}"'
        f' width="{100 * frame.width / whole.width:.4f}%" height="{_ROW}" role="treeitem" tabindex="-1"'
        f' aria-level="{frame.depth + 1}" aria-label="{html.escape(spoken)}" {" ".join(numbers)}>'
        f"<title>{html.escape(detail)}\n{title}</title>"
        f'<rect width="100%" height="100%" fill="{colour}"/>'
        f'<text x="4" y="13">{html.escape(shown)}</text></svg>\n'
    )


def _exactly(size: int) -> str:
    return f"{show_bytes(size)} ({size:,} bytes)" if size >= 1024 else f"{size:,} bytes"


def _difference(node: Node) -> str:
    before = node.before or 0
    changed = node.bytes - before
    exact = f" ({changed:+,} bytes)" if abs(changed) >= 1024 else ""
    return f"before {_exactly(before)}, after {_exactly(node.bytes)}: {show_bytes(changed, signed=True)}{exact}"


def _samples(node: Node) -> str:
    if not node.samples:
        return ""
    return f" · {counted(node.samples, 'sample')}"


def _own(node: Node) -> str:
    """Bytes of the function itself, if it also called others."""
    own = node.bytes - sum(child.bytes for child in node.children.values())
    return f" · {show_bytes(own)} in the function itself" if node.children and own > 0 else ""


def _shade(kind: Kind, name: str) -> str:
    """The colour of a name, the same in every picture; without a name, the middle of its kind's range."""
    hue, spread, saturation, lightness = _SHADES[kind]
    number = zlib.crc32(name.encode("utf-8", "surrogatepass")) if name else 0x8080
    first, second = (number & 0xFF) / 127.5 - 1, (number >> 8 & 0xFF) / 127.5 - 1
    red, green, blue = colorsys.hls_to_rgb((hue + spread * first) % 1, lightness + 0.04 * second, saturation)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _change(share: float) -> str:
    """Red for growth, blue for shrinkage. By the root of the share, which makes small changes visible."""
    strength = math.sqrt(min(1.0, abs(share)))
    extreme = _GREW if share > 0 else _SHRANK
    mixed = [round(same + (end - same) * strength) for same, end in zip(_SAME, extreme, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _cut(label: str, room: int) -> str:
    """As much of the label as fits into `room` characters; empty if that is less than two."""
    used, kept = 0, ""
    for char in label:
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > room:
            return f"{kept}…" if len(kept) >= 2 else ""
        if used < room:
            kept += char
    return label


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _cdata(name: str) -> str:
    """The content of a file next to this one, written so that none of it is markup."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return "<![CDATA[\n" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>"
