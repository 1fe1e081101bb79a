"""Agents run on the machine's python3, which may be 3.9."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.unit.agents.loading import AGENTS

NEWER = {"bit_count", "pairwise", "StrEnum", "tomllib", "batched", "zip strict", "dataclass slots",
         "dataclass kw_only"}  # fmt: skip


def names(tree: ast.AST) -> set[str]:
    """Return the names of modules and attributes, and of functions with their keywords."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.alias(name=name):
                found.add(name)
            case ast.Call(func=ast.Name(id=name), keywords=keywords):
                found |= {f"{name} {keyword.arg}" for keyword in keywords}
    return found


@pytest.mark.parametrize(
    "path", sorted(AGENTS.rglob("*.py")), ids=lambda path: str(path.relative_to(AGENTS))
)
def test_nothing_newer_than_python_3_9_is_used(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    assert names(tree) & NEWER == set()
