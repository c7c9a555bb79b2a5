"""What can be counted of the words: names say what a value is, and docs of parameters are nouns."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from test_architecture import MODULES

# Names that say how a value came about in a sentence, and not what it is.
GRAMMAR = {
    *("one", "found", "said", "told", "some", "kept"),
    *("asked", "known", "own", "held", "beyond"),
}
# A description that answers a question which the reader has to guess.
VAGUE = re.compile(r"(?:Of|Which|Whose|Where|As for)\b")
MOST_GRAMMAR = 0.005  # of all names that are bound
MOST_VAGUE = 0.02  # of all descriptions
SECTIONS = {"Parameters", "Attributes"}


def bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name that is bound, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def parameter_docs(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield names and description of each entry below 'Parameters' or 'Attributes'."""
    parts = re.split(r"^(\w+)\n-{3,}$", docstring, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title in SECTIONS:
            entries = re.split(r"^(\w[\w, *]*)$\n(?=^ {4})", body, flags=re.MULTILINE)
            yield from zip(entries[1::2], map(str.strip, entries[2::2]), strict=True)


def test_names_say_what_a_value_is():
    counts: Counter[str] = Counter()
    n_bindings = 0
    for module, path in MODULES.items():
        for name, line in bindings(ast.parse(path.read_text())):
            n_bindings += 1
            if name in GRAMMAR:
                counts[f"{module}:{line} {name}"] += 1
    share = counts.total() / n_bindings
    assert share <= MOST_GRAMMAR, (
        f"{counts.total()} of {n_bindings} names, {share:.1%}, are one of {sorted(GRAMMAR)}: "
        f"{', '.join(counts)}"
    )


def test_parameters_are_described_by_nouns():
    vague, n_docs = [], 0
    for module, path in MODULES.items():
        for text in docstrings(ast.parse(path.read_text())):
            for names, description in parameter_docs(text):
                n_docs += 1
                if VAGUE.match(description):
                    vague.append(f"{module} {names}: {description.splitlines()[0]}")
    assert n_docs > 500
    assert len(vague) / n_docs <= MOST_VAGUE, f"{len(vague)} of {n_docs}: " + "; ".join(vague)


def test_every_way_of_binding_a_name_is_counted():
    tree = ast.parse("def f(one):\n    one = 1\n    for one in (): pass")
    assert [name for name, _ in bindings(tree)] == ["one"] * 3


def test_descriptions_are_read_from_their_sections_alone():
    text = (
        "Do.\n\nParameters\n----------\na, b\n    Of the draw.\nn\n    Number.\n\n"
        "Returns\n-------\nx\n    Which."
    )
    assert list(parameter_docs(text)) == [("a, b", "Of the draw."), ("n", "Number.")]


def test_no_help_and_no_docstring_speaks_of_a_bootstrap():
    """Only the ECE is resampled, and what that is for is said where it stands."""
    assert [name for name, path in MODULES.items() if "bootstrap" in path.read_text().lower()] == []
