"""Texts that users read are in plain English: none of the words and word orders below is in them.

Every --help, every string of tracer/ that is a text and not a docstring, and the documents are compared with the list.
So are the names of unit tests, and the first words of docstrings in tracer/ and tests/. An error must also have the
form of ERROR_FORM.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tracer import errors
from tracer.cli import phptrace

ROOT = Path(__file__).resolve().parents[2]
# What to write instead is behind each pattern.
DENIED = {
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\btold\b": "phptrace warns, reports, prints",
    r"\b(is|are|was|be) said\b|\bsaid so\b|\bsay what\b": "report, print, state",
    r"\bheed(s|ed)?\b": "respect, follow",
    r"\b(put|puts) down to\b|\b(charged?|credited?|credit)( or credited)? with\b": "attribute to",
    r"\bbe had\b": "be obtained, is available",
    r"\blet (it )?be\b": "leave unchanged, ignore",
    r"\bof late\b": "recently",
    r"\bby heart\b": "in memory, cached",
    r"\bstrangers?\b": "unknown worker, other process, another user",
    r"\bforged\b": "corrupt, crafted, untrusted",
    r"\bwhoever\b|\bfor who\b|\bwho is there first\b": "the process that, anyone who",
    r"\bbesides\b": "also, in addition",
    r"\bthe house\b": "architecture",
    r"^less$": "degraded, warn",
    r"\bthings?\b": "name it: check, problem, file",
    r"\w\(s\)": "the right plural",
    r"\b1 (workers|requests|recordings|samples|frames|fatal errors)\b": "1 worker",
    r"\bat work\b": "still running",
    r"\bperhaps\b": "possibly",
    r"\b(made|makes?) no sense\b": "malformed; cannot be used with",
    r"\btime is over\b": "duration elapsed",
    r"\bgive that, too\b": "X requires Y",
    r"\b(is|are|was|were) to be\b": "must be",
    r"\b(?<!there )(is|are) no (file|functions?|recording|terminal|PHP|target)\b": "is not a file",
    r"\bnarrow(s|ed)? (it|them) down\b": "filter",
    r"\btakes? for granted\b": "assumes",
    r"\bwhat [\w' ]*(grew|grows) by\b": "the growth of",
    r"\d ?us\b": "µs",
    r"^(Whether|What|Who|Whose|That of|Those|For who)\b": "name the subject first",
    r": [^.;!?`{}]*\w: ": "one colon in a sentence",
}
FIRST_DENIED = r"(Whether|What|Who|Whose|That of|Those|For who)\b"
ERRORS = {
    kind.__name__ for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.PhptraceError
}
# `cannot X: reason. Do Y.`, where values may stand for the beginning or the end.
ERROR_FORM = re.compile(r"(cannot [^:]+: .+|\{\})(\. .+\.|\. \{\}|\{\}\{\})")
# Texts in which a pattern means something else.
ALLOWED = {
    "key `mend` is `fix`": "the former name of a key",
    "securityContext: {capabilities: {add: [SYS_PTRACE]}} and shareProcessNamespace: true": "YAML",
}


def faults(text: str) -> list[str]:
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return [
        f"{match[0].strip()!r} in {text.strip()[:90]!r}: write {instead}"
        for pattern, instead in DENIED.items()
        if (match := re.search(pattern, text, re.IGNORECASE if pattern.islower() else 0))
    ]


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of each string that is not a docstring; what an f-string fills in is `{}`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
            for part in node.values:
                yield from texts(ast.Expression(part.value)) if isinstance(part, ast.FormattedValue) else ()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from texts(node)


def first_lines(path: str) -> Iterator[tuple[int, str]]:
    """(line, first line) of each docstring."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text.splitlines()[0]


def error_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of each error that is made with a text of its own; an f-string's values are `{}`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
            text = next(texts(ast.Expression(node.args[0])), None)
            if isinstance(node.args[0], ast.Constant | ast.JoinedStr) and text is not None:
                yield text


@pytest.mark.parametrize("verb", ["", *phptrace.list_commands(click.Context(phptrace))])
def test_every_help_is_plain_english(verb):
    answer = CliRunner().invoke(phptrace, [verb, "--help"] if verb else ["--help"], prog_name="phptrace")
    options = [] if not verb else getattr(importlib.import_module(f"tracer.commands.{verb}"), verb).params

    helps = [" ".join(paragraph.split()) for paragraph in answer.output.split("\n\n")]
    assert answer.exit_code == 0
    assert [fault for text in helps for fault in faults(text.partition("Options:")[0])] == []
    assert [fault for option in options for fault in faults(getattr(option, "help", None) or "")] == []


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tracer").rglob("*.py")))
def test_every_text_of_the_program_is_plain_english(path):
    source = ast.parse((ROOT / path).read_text())

    assert [f"{path}:{line}: {fault}" for line, text in texts(source) for fault in faults(text)] == []


@pytest.mark.parametrize(
    "path", sorted(str(p.relative_to(ROOT)) for top in ("tracer", "tests") for p in (ROOT / top).rglob("*.py"))
)
def test_no_docstring_begins_with_a_question_word(path):
    assert [f"{path}:{line}: {text}" for line, text in first_lines(path) if re.match(FIRST_DENIED, text)] == []


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests/unit").rglob("*.py")))
def test_every_name_of_a_unit_test_is_plain_english(path):
    names = [line[9:].partition("(")[0] for line in (ROOT / path).read_text().splitlines() if line[:9] == "def test_"]

    assert [fault for name in names for fault in faults(name.replace("_", " ").capitalize())] == []


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tracer").rglob("*.py")))
def test_every_error_states_what_cannot_be_done_and_why_and_what_to_do(path):
    source = ast.parse((ROOT / path).read_text())

    wrong = [f"{path}:{line}: {text}" for line, text in error_texts(source) if not ERROR_FORM.fullmatch(text)]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ('UsageError("cannot use --hz: it requires --stacks. Add --stacks.")', True),
        ('UsageError(f"cannot read {path}: {why}. {_COPY}")', True),
        ('UsageError(f"cannot read {path}: {why}")', False),
        ('UsageError("--hz requires --stacks. Add --stacks.")', False),
        ('UsageError("cannot use --hz. Add --stacks.")', False),
    ],
)
def test_an_error_without_a_reason_or_a_fix_is_found(source, right):
    ((_, text),) = error_texts(ast.parse(source))

    assert bool(ERROR_FORM.fullmatch(text)) is right


@pytest.mark.parametrize(
    "name", sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_a_document_is_plain_english(name):
    lines = (ROOT / name).read_text().splitlines()

    assert [f"{name}:{at}: {fault}" for at, line in enumerate(lines, 1) for fault in faults(line)] == []


@pytest.mark.parametrize(
    "text",
    [
        "the mend: none",
        "1 workers",
        "recording(s)",
        "12 us a hit",
        "X is no file",
        "less",
        "Whether it runs",
        "not measured: stacks: no table",
        "Where it fails, it is told",
    ],
)
def test_a_fault_is_found(text):
    assert faults(text) != []


def test_docstrings_are_not_looked_at_and_f_strings_are_one_text():
    source = '''"""told"""\nf"a {b:>{c}} d {'y' if e else f}"\ndef f():\n    "told"\n    return "x"'''

    assert list(texts(ast.parse(source))) == [(2, "a {} d {}"), (2, "y"), (5, "x")]
