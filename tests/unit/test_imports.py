"""The import rules: the parts of tracer/ that each part may import, so that reading a recording needs no backend."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from samples import COMPLETE, recording

ROOT = Path(__file__).resolve().parents[2]
# Parts that are not here may import anything of ours.
MAY_IMPORT = {
    "facts": set(),
    "errors": set(),
    "units": set(),
    "analysis": {"analysis", "facts"},
    "reporters": {"reporters", "analysis", "units", "facts"},
    "output_place": {"errors"},
    "output_file": {"errors", "output_place"},
    "recording": {"recording", "facts", "errors", "output_file", "output_place"},
    "targets": {"targets", "errors"},
    "backends": {"backends", "facts", "targets", "errors"},
    "worker_look": {"targets", "facts"},
    "footprints": {"worker_look", "targets", "facts", "errors"},
    "looks": {"worker_look", "footprints", "targets", "facts", "errors"},
    "capture": {"backends", "facts", "looks"},
}


class Import(NamedTuple):
    module: str
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING:`


def imports(tree: ast.AST, *, in_function: bool = False, for_types: bool = False) -> Iterator[Import]:
    """Every import, importlib.import_module() of a constant included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, in_function, for_types)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                yield Import("." * node.level + f"{node.module}.{name.name}", in_function, for_types)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield Import(node.args[0].value, in_function, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(ast.Module(node.body, []), in_function=in_function, for_types=True)
            yield from imports(ast.Module(node.orelse, []), in_function=in_function, for_types=for_types)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, in_function=in_function or inside, for_types=for_types)


@functools.cache
def modules() -> dict[str, list[Import]]:
    """The imports of each module, by its path below tracer/ without the suffix: `targets/elf`."""
    found = sorted((ROOT / "tracer").rglob("*.py"))
    return {
        str(path.relative_to(ROOT / "tracer").with_suffix("")): list(imports(ast.parse(path.read_text())))
        for path in found
    }


def importers(package: str, *, at_run_time: bool = True) -> set[str]:
    """The modules that import a package that is not ours."""
    return {
        name
        for name, found in modules().items()
        for one in found
        if one.module.split(".")[0] == package and not (at_run_time and one.for_types)
    }


def part_of(module: str) -> str | None:
    """`targets` of `tracer.targets.elf`; None if it is not ours, or names something of tracer/__init__."""
    names = module.split(".")
    if names[0] != "tracer" or len(names) == 1:
        return None
    ours = ROOT / "tracer" / names[1]
    return names[1] if ours.is_dir() or ours.with_suffix(".py").is_file() else None


def test_the_walk_sees_imports_in_functions_under_type_checking_and_by_name():
    source = """
import a
if TYPE_CHECKING:
    from b import c
else:
    import d
class E:
    def f(self):
        from g.h import i, j
        importlib.import_module("k")
"""

    found = list(imports(ast.parse(source)))

    assert found == [
        Import("a", False, False),
        Import("b.c", False, True),
        Import("d", False, False),
        Import("g.h.i", True, False),
        Import("g.h.j", True, False),
        Import("k", True, False),
    ]


def test_the_walk_finds_the_parts_that_the_rules_are_about():
    parts = {name.split("/")[0] for name in modules()}

    assert parts >= MAY_IMPORT.keys()


def test_each_part_imports_only_what_it_may_know():
    broken = [
        f"{name} imports {one.module}"
        for name, found in modules().items()
        for one in found
        if (part := part_of(one.module)) and part not in MAY_IMPORT.get(name.split("/")[0], {part})
    ]

    assert broken == []


def test_nothing_is_imported_relatively():
    relative = [(name, one.module) for name, found in modules().items() for one in found if one.module.startswith(".")]

    assert relative == []


def test_click_is_known_to_the_command_line_only():
    assert {name.split("/")[0] for name in importers("click")} == {"cli", "commands"}


def test_pyelftools_is_known_to_one_module():
    assert importers("elftools") == {"targets/elf"}


def test_bcc_is_known_to_two_modules():
    assert importers("bcc") == {"backends/bpf/programs", "backends/bpf/maps"}


def test_bcc_is_imported_only_inside_functions():
    at_import = [name for name, found in modules().items() for one in found if one.module.split(".")[0] == "bcc"
                 and not one.in_function]  # fmt: skip

    assert at_import == []


def test_rich_is_known_to_reporters_and_commands_only():
    assert {name.split("/")[0] for name in importers("rich")} <= {"reporters", "commands"}


@pytest.mark.parametrize(("verb", "files"), [("report", 1), ("diff", 2)])
def test_a_verb_that_reads_works_where_neither_bcc_nor_pyelftools_is_installed(tmp_path, verb, files):
    path = recording(tmp_path / "r.phptrace", [COMPLETE])
    program = (
        "import sys; sys.modules['bcc'] = sys.modules['elftools'] = None\n"
        "from tracer.cli import main\n"
        f"main({[verb, *[str(path)] * files]!r})"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    assert ended.returncode == 0, ended.stderr
    assert "/srv/www/index.php" in ended.stdout
