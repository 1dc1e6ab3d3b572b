"""What the README says can be typed: its files exist, its scripts and flags are there, its models and sweeps too."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import archs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_links_resolve():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links), links


def test_named_files_exist():
    named = re.findall(r"`((?:archs|engine|slurm|analysis|scripts|results|tests)/[\w./]+)`", README)
    named = [name for name in named if not re.search(r"[A-Z]{3}|report\.html", name)]
    assert named and all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python")])
def test_commands_have_their_flags(command):
    words = shlex.split(command)
    script, *arguments = words[1:]
    help_words = [arguments[0], "--help"] if script.endswith("sweep.py") else ["--help"]
    text = subprocess.run(
        [sys.executable, ROOT / script, *help_words], capture_output=True, text=True, check=True
    ).stdout
    for word in arguments:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word
        elif re.fullmatch(r"[a-z]+_[a-z0-9]+", word):
            assert word in [*archs.list_archs(), *(path.stem for path in (ROOT / "engine" / "recipes").glob("*.yaml"))]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"] and all(f"\n{target}:" in makefile for target in targets)


def test_every_directory_of_the_layout_is_there():
    layout = README.partition("## Layout")[2]
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/ ", layout, re.MULTILINE))
