"""Who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ctgrounding"
OPEN = {"types", "errors", "mappings", "label_sets", "questions", "_torchvision_repair"}
"""Rooms that everyone may use."""

MAY = {
    "types": set(),
    "errors": set(),
    "mappings": set(),
    "label_sets": set(),
    "questions": set(),
    "geometry": set(),
    "reports": set(),
    "distributed": set(),
    "functional": {"distributed"},
    "ingest": {"geometry", "reports", "data.shards", "data.records", "data.supervision"},
    "phantom": {"geometry"},
    "data": {"geometry"},
    "encoders": {"geometry", "functional"},
    "objectives": {"geometry", "functional", "distributed", "encoders"},
    "evaluation": {"geometry", "functional", "distributed", "encoders"},
    "tasks": {"encoders", "objectives", "evaluation", "distributed", "functional"},
    "exported": {"encoders"},
    "model": {"encoders", "ingest", "geometry", "data.augment", "exported"},
    "hub": {"encoders", "exported", "model"},
    "_torchvision_repair": set(),
    "written": set(),
    "noise": set(),
    "parsing": {"written"},
}
LAZY = {"cli", "__main__", "__init__"}
"""Import nothing of ours but these when they are imported themselves."""

LAZY_MAY = OPEN | {"cli"}
EVERYTHING = {"testing", "commands", "trainer_cli"}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.with_suffix("").parts[0]


def imported(file: Path, *, at_import: bool = False) -> list[str]:
    """Full names of what a file imports; with ``at_import`` only what its own import brings."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names: list[str] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        pending += ast.iter_child_nodes(node)
    return names


def rooms_in(names: list[str]) -> set[str]:
    """Our rooms among them, files of ``data`` by their own name."""
    ours = {name.split(".", 1)[1] for name in names if name.startswith("ctgrounding.")}
    return {".".join(name.split(".")[:2]) if name.startswith("data.") else name.split(".")[0] for name in ours}


@pytest.mark.parametrize("room", sorted({room_of(file) for file in FILES} - EVERYTHING))
def test_rooms(room):
    allowed = LAZY_MAY if room in LAZY else MAY[room] | OPEN | {room}
    for file in FILES:
        if room_of(file) == room:
            found = rooms_in(imported(file, at_import=room in LAZY)) - {"__version__"}
            extra = {name for name in found if name not in allowed and name.split(".")[0] not in allowed}
            assert not extra, f"{file} imports {sorted(extra)}; {room} may import {sorted(allowed)}"


def test_testing_does_not_use_the_command_line():
    for file in FILES:
        if room_of(file) == "testing":
            assert not rooms_in(imported(file)) & {"cli", "trainer_cli", "commands"}, file


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("torch.distributed", {"distributed/ranks.py"}),
        (
            "h5py",
            {
                "data/feature_reading.py",
                "data/feature_writing.py",
                "data/partial_file.py",
                "data/shard_reading.py",
                "data/shard_writing.py",
            },
        ),
    ],
)
def test_libraries_with_few_importers(library, owners):
    users = {
        file.as_posix()
        for file in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imported(file))
    }
    assert users == owners


def test_files_are_short():
    lengths = {file.as_posix(): len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_the_table_knows_every_room():
    assert {room_of(file) for file in FILES} <= set(MAY) | LAZY | EVERYTHING | OPEN
