"""The structure of the house: one-way imports, no shadowed modules, no file that outgrows its idea."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "archs": {"archs"},
    "engine": {"archs", "engine"},
    "slurm": {"archs", "engine", "slurm"},
    "analysis": {"archs", "engine", "analysis"},
    "scripts": {"archs", "engine", "slurm", "analysis"},
}
SOURCES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """Every module that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & {*MAY_IMPORT, "tests"}
    assert ours <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_under_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_only_one_module_touches_ffcv():
    users = {path.name for path in SOURCES if any(name.split(".")[0] == "ffcv" for name in imports(path))}
    assert users == {"reader.py"}


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
