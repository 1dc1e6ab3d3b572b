"""timm's own test suite over our zoo: its tests/test_models.py, of the version pinned here, on our small variants.

The tests come from timm's source distribution, which is not in the repository:

    pip download --no-binary timm --no-deps timm==1.0.31 && tar xf timm-1.0.31.tar.gz

A copy with other constants is run, and removed: the models are ours, none is exempt as not standard, and the one test
of features by torch.fx runs on ours too. What timm tests on models of its own by name is left out, and so is what needs
published weights. All of it takes a quarter of an hour on two cores; -k takes it by the piece, as pytest does.
"""

import collections
import importlib
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, run_main, show
from engine.cli.tables import check_target, table, write
from engine.errors import Refusal

PINNED = version("timm")
HEAD = """
import archs.timm_zoo
MODELS = {models!r}

def list_models(filter="", *args, pretrained=False, **given):
    return [] if pretrained or isinstance(filter, str) and filter else MODELS
"""
AFTER = "from timm import list_models, list_pretrained, create_model, set_scriptable, get_pretrained_cfg_value\n"
CHANGES = (
    (re.escape(AFTER), None),
    (r"(?s)\nNON_STD_FILTERS = \[.*?\n\]\n", "\nNON_STD_FILTERS = []\n"),
    (re.escape("'model_name', [\"regnetx_002\"]"), "'model_name', MODELS"),
)


def main() -> None:
    parser = Parser(prog="scripts/bench/timm_suite.py", description=__doc__)
    parser.add_argument("sdist", type=Path, help="the unpacked source distribution of timm")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="tests to run, as for pytest")
    parser.add_argument("--max-params", type=int, default=3_000_000, help="of the variants to test (default: 3 M)")
    parser.add_argument("--results-file", type=Path, help="also write the counts to this .csv, .json or .md")
    given = parser.parse()
    check_target(given.results_file)
    tests = given.sdist / "tests" / "test_models.py"
    if not tests.is_file():
        raise Refusal(f"{tests} does not exist; pip download --no-binary timm --no-deps timm=={PINNED} has it")
    if f"\nVersion: {PINNED}\n" not in (given.sdist / "PKG-INFO").read_text():
        raise Refusal(f"{given.sdist} is not timm {PINNED}, which is installed")

    import pytest

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "test_models.py"
        copy.write_text(adapted(tests.read_text(), small(given.max_params)))
        chosen = " and ".join(["softmlp_", *([f"({given.k})"] if given.k else [])])
        quiet = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "--show-capture=no", "--no-summary", "-q"]
        pytest.main([str(copy), "--rootdir", folder, "-c", "/dev/null", "-k", chosen, *quiet], plugins=[tally])
    if not tally.counts:
        raise Refusal(f"no test ran: -k {given.k} fits none")
    rows = [{"test": test, **tally.counts[test]} for test in sorted(tally.counts, key=lambda t: ("script" in t, t))]
    show(table(rows))
    for test, model, reason in sorted(tally.failed):
        print(f"{test} {model}: {reason}")
    plain = [row for row in rows if "script" not in row["test"]]
    print(
        f"without TorchScript: {sum(row['passed'] for row in plain)} passed, {sum(row['failed'] for row in plain)} not"
    )
    if given.results_file:
        write(given.results_file, rows)


class Tally:
    """A plugin of pytest that counts by test function, and keeps the reasons of those that failed."""

    def __init__(self) -> None:
        self.counts: Any = collections.defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0})
        self.failed: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        test, _, rest = report.nodeid.rpartition("::")[2].partition("[")
        self.counts[test][report.outcome] += 1
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            line = " ".join((crash.message if crash else str(report.longrepr)).split())
            model = re.search(r"softmlp_\w+", rest)
            self.failed.append((test, model[0] if model else rest, line[:160]))


def adapted(source: str, models: list[str]) -> str:
    """timm's tests with the constants of ours. Raises Refusal where a constant is not as it was in the pinned timm."""
    for pattern, by in CHANGES:
        new = AFTER + HEAD.format(models=models) if by is None else by
        source, found = re.subn(pattern, lambda _, new=new: new, source)
        if not found:
            raise Refusal(f"test_models.py has no {pattern}: is it timm's of {PINNED}?")
    return source


def small(max_params: int) -> list[str]:
    """Names, in timm's registry, of the variants with fewer parameters."""
    import archs

    tables = {family: importlib.import_module(f"archs.{family}").EXPECTED for family in archs.families()}
    parts = [(name, *name.split("_", 1)) for name in archs.list_archs()]
    return [f"softmlp_{name}" for name, family, variant in parts if tables[family][variant]["params"] < max_params]


if __name__ == "__main__":
    run_main(main)
