"""SECURITY.md: each of its statements names tests, and those are there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::[\w:]+)`", TEXT)))


def statements() -> list[str]:
    """The points under "Who is trusted with what", each as one line."""
    whole = TEXT.partition("## Who is trusted with what")[2].partition("\n## ")[0]
    return [" ".join(point.split()) for point in re.findall(r"^- (.*(?:\n  .*)*)", whole, re.MULTILINE)]


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there(name: str) -> None:
    path, *parts = name.split("::")
    body: list[ast.stmt] = ast.parse((REPOSITORY / path).read_text()).body
    for part in parts:
        found = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part]
        assert len(found) == 1, f"{path} has no {part}"
        body = found[0].body
    assert parts[-1].startswith("test_")


def test_each_statement_names_a_test_or_says_why_there_is_none() -> None:
    points = statements()
    assert len(points) > 15
    assert [point for point in points if "::test_" not in point and "no test can show" not in point] == []


def test_whoever_is_in_the_protocol_is_on_the_page() -> None:
    for party in ("Guests", "toolstack", "driver domain", "programs of root", "Local users", "store"):
        assert re.search(rf"^### .*{party}", TEXT, re.MULTILINE), party
