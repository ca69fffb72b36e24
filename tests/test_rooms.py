"""The rooms of the house: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "celery_tfpool"
#: A room may import those after it, and the files of the top level that are in BASE.
ROOMS = ("pool", "predictors", "models", "packs", "runners", "engines")
#: Optional: it may import what is right of the pool, and of the rooms only this file imports it.
OBSERVE, OBSERVER = "observe", Path("pool", "startup.py")
#: What anybody may import.
BASE = {
    "arrays",
    "errors",
    "settings",
    "setting_checks",
    "model_path",
    "processes",
    "_celery",
    "_tensorflow",
    "_backends",
    "__version__",
}


def imports(path: Path, source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and target of each import of ours: ("runners", "spec"), ("errors",)."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            for alias in node.names:
                yield node.lineno, (*base, *(node.module or alias.name).split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "celery_tfpool":
            yield node.lineno, tuple((node.module or "").split(".")[1:])


def wrong(path: Path, source: str) -> Iterator[str]:
    """What ``source``, which stands at ``path``, imports and may not."""
    room, *rest = path.relative_to(PACKAGE).parts
    for line, target in imports(path, source):
        where = f"{path.relative_to(PACKAGE)}:{line} imports {'.'.join(target) or 'the package itself'}"
        if rest:
            allowed = {*ROOMS[ROOMS.index(room) :], *BASE} if room in ROOMS else {*ROOMS[1:], OBSERVE, *BASE}
            if path.relative_to(PACKAGE) == OBSERVER:
                allowed.add(OBSERVE)
            if not target or target[0] not in allowed:
                yield where
        elif path.stem in BASE and target and target[0] in (*ROOMS, "cli"):
            yield where


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_the_right(path: Path) -> None:
    assert [] == list(wrong(path, path.read_text()))


PLANTED = [
    *("from ..pool import child", "from ..models.handle import Handle", "from .. import cli"),
    "from ..observe import prometheus",
]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_seen(planted: str) -> None:
    assert 1 == len(list(wrong(PACKAGE / "runners" / "planted.py", planted)))


@pytest.mark.parametrize("room", [*ROOMS, OBSERVE])
def test_a_room_names_its_files(room: str) -> None:
    """In its docstring, each with what it decides."""
    lines = (ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or "").splitlines()
    named = {name.strip() for line in lines if line.startswith("    ") for name in line[:21].split(",") if name.strip()}
    named = {name.split("  ")[0] for name in named}
    assert {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"} == named


def test_no_circles() -> None:
    """Not even within a room; what is imported only for types does not count."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        graph[name] = {found for target in at_import(path) if (found := module_of(target)) and found != name}
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            if (one := ahead.pop()) not in seen:
                seen.add(one)
                ahead += graph.get(one, ())
        assert start not in seen, f"{start} imports itself by way of {sorted(seen)}"


def at_import(path: Path) -> Iterator[tuple[str, ...]]:
    """What is imported when the module is: not in functions, not for types only."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            for alias in node.names:
                yield (*base, *(node.module or "").split("."), alias.name) if node.module else (*base, alias.name)


def module_of(target: tuple[str, ...]) -> str | None:
    """The module that holds ``target``, which may be a name in it."""
    for parts in (target, target[:-1]):
        if parts and (PACKAGE.joinpath(*parts).with_suffix(".py")).is_file():
            return ".".join(parts)
    return None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 250
