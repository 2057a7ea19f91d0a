"""The house stands on its floors: each module knows only its own floor and those below. Read from the sources."""

import ast
import re
from pathlib import Path

import trisync

FLOORS: list[set[str]] = [
    {"wire", "settings", "retention_rules", "patterns", "tokens", "version"},
    {"storage"},
    {"core"},
    {"sessions"},
    {"doors"},
    {"embedding", "server", "config"},
    {"cli", "client", "__main__", "loadtest"},
]
"""Modules and subpackages of trisync, from the ground up."""

FACE = len(FLOORS)
"""trisync/__init__.py: what a program imports; nobody here does."""

NOT_SANS_IO = {"trio", "trio_websocket", "socket", "sqlite3", "sqlite_utils", "asyncio", "threading", "subprocess"}

PACKAGE = Path(trisync.__file__).parent


def dotted(path: Path) -> str:
    parts = ["trisync", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(), path.name) for module, path in SOURCES.items()}


def imported_names(module: str) -> set[str]:
    """Every name that a module imports, anywhere in it, in full."""
    names: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imports(module: str) -> set[str]:
    """The modules of trisync that a module imports."""
    found: set[str] = set()
    for name in imported_names(module):
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found - {module}


def floor_of(module: str) -> int | None:
    if module == "trisync":
        return FACE
    room = module.split(".")[1]
    return next((floor for floor, rooms in enumerate(FLOORS) if room in rooms), None)


def test_every_module_has_its_floor() -> None:
    homeless = [module for module in SOURCES if floor_of(module) is None]
    assert not homeless, (
        f"{', '.join(homeless)}: not in the table FLOORS of {Path(__file__).name}. Move each to the folder of the "
        "lowest floor that is not below anything it imports; README.md ('How it is built') shows those without one too."
    )


def test_the_readme_shows_the_same_house() -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    rows = re.findall(r"^\| (\d) \| (.*?) \|", readme.partition("## How it is built")[2], re.MULTILINE)
    shown = {int(floor): set(re.findall(r"`(\w+)/?`", rooms)) for floor, rooms in rows}
    assert shown == {floor: rooms - {"__main__"} | ({"web"} & shown[floor]) for floor, rooms in enumerate(FLOORS)}


def test_no_module_has_two_floors() -> None:
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms))


def test_no_module_knows_what_is_above_it() -> None:
    wrong = []
    for module in SOURCES:
        for other in imports(module):
            here, there = floor_of(module), floor_of(other)
            if here is not None and there is not None and there > here:
                wrong.append(f"{module} (floor {here}) imports {other} (floor {there})")
    assert not wrong, (
        "; ".join(wrong) + ". Do not move the module up: let the upper one pass in what the lower one needs, or move "
        "what both need to a lower floor."
    )


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, (
            f"a circle of imports: {' → '.join([*path[path.index(module) :], module])}. "
            "One of them holds something that belongs in a room of its own, below both."
        )
        if module not in done:
            for other in sorted(imports(module)):
                visit(other, (*path, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


def test_no_import_is_hidden_from_the_running_program() -> None:
    for module, tree in TREES.items():
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
        hidden = [
            node.lineno for node in names if "TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", ""))
        ]
        assert not hidden, (
            f"{module} uses TYPE_CHECKING in line {hidden[0]}: a type that is needed from above means that one of the "
            "two is on the wrong floor"
        )


def test_the_ground_floor_does_no_io() -> None:
    for module in SOURCES:
        if floor_of(module) == 0:
            used = {name.partition(".")[0] for name in imported_names(module)} & NOT_SANS_IO
            assert not used, (
                f"{module} imports {', '.join(sorted(used))}, and is on floor 0, where every rule is tested without a "
                "socket or a disk: move what needs it to a higher floor"
            )


def test_an_except_star_raises_nothing_by_itself() -> None:
    """Python before 3.11.4, which is Debian 12's, makes a group of that, and a click.ClickException a traceback."""
    handlers = [
        (module, handler)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.TryStar)
        for handler in node.handlers
    ]
    assert handlers
    assert [
        f"{module}:{node.lineno}"
        for module, handler in handlers
        for node in ast.walk(handler)
        if type(node) is ast.Raise
    ] == []


def test_the_load_test_says_where_each_of_its_modules_stands() -> None:
    modules = {module.rpartition(".")[2] for module in SOURCES if module.startswith("trisync.loadtest.")}
    assert set(re.findall(r"`(\w+)`", ast.get_docstring(TREES["trisync.loadtest"]) or "")) == modules
