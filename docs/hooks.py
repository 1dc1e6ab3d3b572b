"""Pages that mkdocs makes from the source, so that they cannot fall behind it; see mkdocs.yml.

models: families, sources and costs; flags: the fields of Run and How, and timm's; recipes: engine/recipes;
glossary: the `__init__.py` of each room; log, files: results/LOG.md and README.md; figures/NAME: results/NAME/figures.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import archs
from archs.parts.family import read
from engine.cli import timm_flags
from engine.cli.flags import Parser, add_fields
from engine.run import How, Run

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    pages = {"models.md": models(), "flags.md": flags(), "recipes.md": recipes(), "glossary.md": glossary()}
    pages |= {"log.md": "".join(_of_results("LOG.md")), "files.md": "".join(_of_results("README.md"))}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for figure in sorted((ROOT / "results").glob("*/figures/*.svg")):
        place = f"figures/{figure.parts[-3]}/{figure.name}"
        files.append(File.generated(config, place, abs_src_path=str(figure)))
    return files


def models() -> str:
    """A table of variants for each family, with what its file says of it."""
    lines = ["# Models", "", "Parameters and MACs at batch 1 (1 MAC = 2 FLOPs), in closed form.", ""]
    for family in archs.families():
        source = read(family)
        bias = source.bias("")
        words = f"stem {bias.stem}, receptive field {bias.receptive_field}"
        words += "" if bias.grid_bound else "; weights without places: any size of image"
        lines += [f"## {family}", "", f"{source.tables['SOURCE']}", "", f"{words}.", ""]
        lines += ["| variant | pixels | parameters | MACs |", "|:--|--:|--:|--:|"]
        for name in archs.variants(family):
            own, cost = archs.arguments(f"{family}_{name}"), source.tables["EXPECTED"][name]
            lines.append(f"| `{family}_{name}` | {own['img_size']} | {cost['params']:,} | {cost['macs']:,} |")
        lines.append("")
    return "\n".join(lines)


def flags() -> str:
    """The flags of scripts/train.py, and what every flag of timm's train.py is here."""
    lines = [
        "# Flags",
        "",
        "Of `scripts/train.py`, timm's wherever timm has one. The first decide the result, and so the",
    ]
    lines += ["signature; the others do not.", ""]
    parser = Parser(prog="scripts/train.py")
    for kind, title in ((Run, "What decides the result"), (How, "What does not")):
        lines += [f"## {title}", "", "| flag | default | |", "|:--|:--|:--|"]
        for name, field in kind.model_fields.items():
            if name == "scheme":
                continue
            usual = "" if field.default in (None, {}, ()) or isinstance(field.default, Path) else field.default
            lines.append(f"| `--{name.replace('_', '-')}` | {usual} | {_cell(field.description)} |")
        lines.append("")
        add_fields(parser, kind)
    table = timm_flags.table(parser._option_string_actions)
    return "\n".join([*lines, "## Flags of timm's train.py", "", "```text", table, "```", ""])


def recipes() -> str:
    """Each file of engine/recipes."""
    lines = ["# Recipes", "", "`-c NAME` takes one; flags beside it win. Comments name the source of each number.", ""]
    for path in sorted((ROOT / "engine" / "recipes").glob("*.yaml")):
        lines += [f"## {path.stem}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def glossary() -> str:
    """What the files of each room are."""
    lines = ["# Glossary", "", "Each room of the source opens with the few words that its files are named by.", ""]
    for path in sorted(ROOT.glob("*/**/__init__.py")):
        room = path.parent.relative_to(ROOT)
        if room.parts[0] in ("archs", "engine", "slurm", "analysis", "scripts"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            lines += [f"## {room}/", "", "```text", text, "```", ""]
    return "\n".join(lines)


def _of_results(name: str) -> Iterator[str]:
    """A page of results/, its links to files of the repository as plain names."""
    for line in (ROOT / "results" / name).read_text().splitlines(keepends=True):
        yield re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"`\1`", line)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")
