"""Run every contract test of one family, archs/FAMILY.py, and say what they prove and what is not proved.

What the file must and may hold is in archs/parts/family.py; a mistake there is one line. Exit code 1 if a test failed.
"""

import importlib
import subprocess
import sys

from archs.parts import family as protocol
from engine.cli.flags import Parser, run_main
from engine.errors import Refusal, line_of
from engine.fields.values import nearest
from engine.folder.store import ROOT


def main() -> int:
    parser = Parser(prog="scripts/check_family.py", description=__doc__)
    parser.add_argument("family", help="such as mixer")
    parser.add_argument("-k", default="", metavar="WORD", help="only tests with this in their name, as pytest's -k")
    given = parser.parse()
    family = given.family
    if family not in (known := protocol.names()):
        raise Refusal(f"there is no archs/{family}.py; near: {nearest(family, known) or ', '.join(known)}")
    from analysis.bias.symmetry import declared

    for variant in protocol.read(family).tables["VARIANTS"]:
        declared(f"{family}_{variant}")  # refuses a group that is none
    try:
        importlib.import_module(f"archs.{family}")
    except Exception as error:
        raise Refusal(f"archs/{family}.py cannot be imported: {type(error).__name__}: {line_of(error)}") from error
    tests = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.proves(" in path.read_text()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        f"--family={family}",
        f"-k={given.k}",
    ]
    return min(subprocess.call([*command, *map(str, tests)], cwd=ROOT), 1)


if __name__ == "__main__":
    run_main(main)
