"""The rooms of the house: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "celery_tfpool"
#: A room may import those after it, and the files of the top level that are in BASE.
ROOMS = ("pool", "predictors", "models", "packs", "runners", "engines")
#: What anybody may import.
BASE = {"errors", "settings", "setting_checks", "processes", "__version__"}


def imports(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and target of each import of ours: ("runners", "spec"), ("errors",)."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            for alias in node.names:
                yield node.lineno, (*base, *(node.module or alias.name).split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "celery_tfpool":
            yield node.lineno, tuple((node.module or "").split(".")[1:])


def wrong(path: Path) -> Iterator[str]:
    """What ``path`` imports and may not."""
    room, *rest = path.relative_to(PACKAGE).parts
    for line, target in imports(path):
        where = f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(target) or 'the package itself'}"
        if rest:
            allowed = {*ROOMS[ROOMS.index(room) :], *BASE} if room in ROOMS else {*ROOMS, *BASE}
            if not target or target[0] not in allowed:
                yield where
        elif path.stem in BASE and target and target[0] in (*ROOMS, "cli"):
            yield where


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_the_right(path: Path) -> None:
    assert [] == list(wrong(path))
