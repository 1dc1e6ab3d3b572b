"""The structure of the house: one-way imports, no circles, rooms that explain themselves, small files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "archs": {"archs"},
    "engine": {"archs", "engine"},
    "slurm": {"archs", "engine", "slurm"},
    "analysis": {"archs", "engine", "analysis"},
    "scripts": {"archs", "engine", "slurm", "analysis"},
}
SOURCES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
# Where a file's name is an address that users type; there may be any number of them, and each is its own entry.
PLUG_INS = ("archs", "archs/formats", "archs/mixing", "analysis/probes", "analysis/report/sections", "slurm/sweeps")
PLUG_INS += ("analysis/choosing", "engine/pruning/criteria")
ROOMS = sorted({str(path.parent.relative_to(ROOT)) for path in SOURCES} - {*PLUG_INS})
MOST_FILES = 12


def imports(path):
    """Every module that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(root, folder):
    """Lists of files below a folder that import each other, directly or not, in functions and for types too."""
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in (root / folder).rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    graph = {name: {*imports(path)} & {*names.values()} - {name} for path, name in names.items()}
    ways = {name: reached(graph, name) for name in graph}
    found = {tuple(sorted(other for other in ways[name] if name in ways[other])) for name in graph}
    return sorted(list(circle) for circle in found if circle)


def reached(graph, start):
    """What can be got to from there; the start itself where there is a way back."""
    seen, left = set(), [start]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & {*MAY_IMPORT, "tests"}
    assert ours <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_under_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_only_one_room_touches_ffcv():
    users = {path.parent for path in SOURCES if any(name.split(".")[0] == "ffcv" for name in imports(path))}
    assert users == {ROOT / "engine/data/ffcv"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_files_import_each_other(folder):
    assert circles(ROOT, folder) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path):
    (tmp_path / "room").mkdir()
    for name, text in {
        "a.py": "import os\nfrom room import b\n",
        "b.py": "def late():\n    from room.c import thing\n",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import room.a\n",
        "d.py": "import room.a\nimport room.e\n",
        "e.py": "name = 'room.d'\n",
        "__init__.py": "",
    }.items():
        (tmp_path / "room" / name).write_text(text)
    assert circles(tmp_path, "room") == [["room.a", "room.b", "room.c"]]
    (tmp_path / "room" / "__init__.py").write_text("from room.e import name\n")
    (tmp_path / "room" / "e.py").write_text("from room import f\n")
    assert ["room", "room.e"] in circles(tmp_path, "room")


def glossary(room):
    """The files that a room's `__init__.py` explains: the first column of its docstring, folders left out."""
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    columns = [re.match(r"(\w+(?: \w+)*)  +\S", line) for line in text.splitlines()]
    return [word for column in columns if column for word in column[1].split()]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_explains_its_files_and_no_others(room):
    files = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    named = glossary(room)
    assert {*named} == files and len(named) == len(files)


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.startswith("scripts")])
def test_a_room_is_small(room):
    assert len([path for path in (ROOT / room).glob("*.py") if path.stem != "__init__"]) <= MOST_FILES


def test_no_script_shadows_a_standard_module():
    assert not {path.stem for path in (ROOT / "scripts").glob("*.py")} & set(sys.stdlib_module_names)
    assert not (ROOT / "slurm" / "submitit.py").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "scripts").glob("[a-z]*.py")))
def test_help_imports_nothing_heavy(name, tmp_path):
    """--help, by path and as a module, from another folder, without what takes seconds to import."""
    code = (
        f"import runpy, sys\nsys.argv = ['{name}', '--help']\n"
        f"try:\n    runpy.run_module('scripts.{name}', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'timm', 'ffcv', 'numba', 'pandas', 'matplotlib', 'submitit'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    by_path = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{name}.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert by_path.returncode == 0 and "usage:" in by_path.stdout
