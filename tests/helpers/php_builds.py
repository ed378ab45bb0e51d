"""Copies of a real PHP that run as it does, and look to phptrace like another build of it."""

from __future__ import annotations

from pathlib import Path


def static(php: str, path: Path) -> str:
    """A copy without section headers: no symbol is found, as in a static build. The loader does not need them."""
    content = bytearray(Path(php).read_bytes())
    content[40:48] = bytes(8)  # e_shoff
    content[60:64] = bytes(4)  # e_shnum, e_shstrndx
    return _written(path, bytes(content))


def thread_safe(php: str, path: Path) -> str:
    """A copy that calls itself thread-safe (ZTS). It loads no extension."""
    content = Path(php).read_bytes()
    start = content.index(b"API20")
    end = content.index(b"\0", start)
    label = content[start:end]
    assert label.endswith(b",NTS")
    return _written(path, content.replace(label + b"\0", label[:-3] + b"TS\0\0"))


def without_usdt_probes(php: str, path: Path) -> str:
    """A copy whose USDT probes are not found, as in a PHP that is built without --enable-dtrace."""
    content = Path(php).read_bytes()
    assert b".note.stapsdt\0" in content
    return _written(path, content.replace(b".note.stapsdt\0", b".note.no_sdt.\0"))


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)
