"""What README and manual say can be typed: files, scripts, flags and models are there, and their Python runs."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import archs
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README, WHOLE = PAGES[ROOT / "README.md"], "\n".join(PAGES.values())
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", WHOLE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
WHOLE_FILE = r"`([\w/]+/[\w/]+\.py)`:\n\n```python\n(.*?)```"
EXAMPLES = dict(re.findall(WHOLE_FILE, WHOLE, re.DOTALL))  # by path
MOVED = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs" / "moved.md").read_text().splitlines()
    if re.match(r"\| `", line)
]
# What docs/hooks.py makes for the manual.
MADE = re.findall(r'"(\w+\.md)": ', (ROOT / "docs" / "hooks.py").read_text())


def anchors(text):
    """What headings can be linked to."""
    heads = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, anchor = link.partition("#")
        if link.startswith("http") or name in MADE:
            continue
        if name.startswith("figures/"):
            _, study, figure = name.split("/")
            assert (ROOT / "results" / study / "figures" / figure).exists(), link
        else:
            assert (page.parent / name).exists(), link
            assert not anchor or anchor in anchors((page.parent / name).read_text()), link


def test_every_page_is_in_the_manual():
    nav = re.findall(r"- (\w+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(nav) == sorted([*MADE, *(path.name for path in (ROOT / "docs").glob("*.md"))])


def test_the_manual_is_built_without_warnings(tmp_path):
    """From the very pages and source; strict, and every object of the reference found."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, "--quiet"], cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    for name in ("engine.cli.call.train_run", "engine.run.Run", "analysis.notebook.probe", "archs.parts.zoo.create"):
        assert f'id="{name}"' in pages["api"], name
    assert (
        "mixer_s16" in pages["models"] and "--batch-size" in pages["flags"] and "convmixer_imagenet" in pages["recipes"]
    )
    assert "engine/data/" in pages["glossary"] and "ladder_lr" in pages["log"] and "predictions.npz" in pages["files"]
    assert all((tmp_path / f"site/figures/{name}.svg").is_file() for name in ("lattice/forest", "ladder/gaps"))
    foreign = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', "".join(pages.values()))
    assert not foreign, foreign  # it is read without a network


def test_named_files_exist():
    now = re.sub(r"^\| `.*", "", WHOLE, flags=re.MULTILINE)  # without the table of what was elsewhere
    named = re.findall(r"`((?:archs|engine|slurm|analysis|scripts|results|tests)/[\w./]+)`", now)
    named = [name for name in named if not re.search(r"[A-Z]{3}|report\.html", name)]
    assert named and all((ROOT / name).exists() for name in named if name not in EXAMPLES), named


@functools.cache
def help_of(script, *words):
    command = [sys.executable, ROOT / script, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python")])
def test_commands_have_their_flags(command):
    words = shlex.split(command)
    script, *arguments = words[1:]
    text = help_of(script, *(arguments[:1] if script.endswith("sweep.py") else ()))
    for word in arguments:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word
        elif re.fullmatch(r"[a-z]+_[a-z0-9]+", word):
            rooms = ("slurm/sweeps", "analysis/probes", "analysis/choosing", "engine/pruning/criteria")
            files = [path for room in rooms for path in (ROOT / room).glob("*.py")]
            files += (ROOT / "engine" / "recipes").glob("*.yaml")
            assert word in [*archs.list_archs(), *(path.stem for path in files)]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"] and "`make docs`" in README
    assert all(f"\n{target}:" in makefile for target in (*targets, "docs"))


def test_every_directory_of_the_layout_is_there():
    layout = README.partition("## Layout")[2]
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/ ", layout, re.MULTILINE))


@pytest.mark.parametrize(("was", "now"), MOVED)
def test_what_moved_is_where_the_table_says(was, now):
    """`engine.cost.` (the same names) or `engine.data.loaders`, `.data.sets`; a file of scripts/ by its path."""
    files = re.findall(r"`([\w./]+)`", now)
    for old, new in zip(was.split(";"), now.split(";"), strict=False):
        if "(the same names)" in new:
            (room,) = re.findall(r"`([\w.]+)\.`", new)
            same = re.findall(r"\w+", re.sub(r"`.*?`", "", old))
            assert same
            files += [f"{room}.{name}" for name in same]
    for file in files:
        if now.startswith("`scripts/"):
            path = ROOT / "scripts" / "bench" / Path(file).name
        else:
            full = files[0].partition(".")[0] + file if file.startswith(".") else file
            path = ROOT / (full.replace(".", "/") + ("" if full.endswith(".") else ".py"))
        assert path.exists(), path


def test_a_probe_and_a_sweep_are_one_file_each(tmp_path, digits):
    """The two examples of the README, put into a copy of the code as they are, are trained, probed and reported."""
    probe, sweep = "analysis/probes/mirror.py", "slurm/sweeps/deeper.py"
    assert EXAMPLES.keys() == {probe, sweep}
    for room in ("archs", "engine", "slurm", "analysis", "scripts", "results/published"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in EXAMPLES.items():
        (tmp_path / path).write_text(text)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "SOFTMLP_RESULTS": str(tmp_path / "results")}

    def script(name: str, *words: str) -> str:
        done = warm.run(tmp_path / "scripts" / name, *words, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Does a deeper mixer read digits better?" in script("sweep.py", "plan", "deeper")
    given = ("--data-dir", str(digits), "--threads", "1")
    said = script("sweep.py", "launch", "deeper", "--cluster", "debug", *given)
    assert "probes: mirror of 6 runs" in said
    page = (tmp_path / "results/deeper/report.html").read_text()
    assert "four blocks over one" in page and 'id="probe-mirror"' in page
    assert "acc_mirror" in script("probe.py", "deeper", "--probe", "mirror", *given)
    found = [json.loads(path.read_text()) for path in (tmp_path / "results/runs").glob("*/probes/mirror.json")]
    assert len(found) == 6 and all(one["values"].keys() == {"acc", "acc_mirror", "consistency"} for one in found)
    assert all(one["values"]["acc_mirror"]["value"] < one["values"]["acc"]["value"] for one in found)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python\n" in PAGES[page]], ids=lambda page: page.name)
def test_python_in_the_docs_runs(page, tmp_path, digits):
    """All blocks of a page in one go, but whole files, and those marked `skip`, which need files or networks."""
    blocks = re.findall(r"```python\n(.*?)```", re.sub(WHOLE_FILE, "", PAGES[page], flags=re.DOTALL), re.DOTALL)
    if not blocks:
        return
    env = {**os.environ, "SOFTMLP_RESULTS": str(tmp_path), "SOFTMLP_DATA": str(digits), "PYTHONPATH": str(ROOT)}
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = warm.run(tmp_path / "page.py", env=env, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout, done.stderr
