"""`pytest --family NAME`: the contract tests of one family, and at the end what they prove and what is not proved.

A contract test says what it proves: `@pytest.mark.proves("EXPECTED, counted")`. It is a family's if a parameter is its
name or begins with it, as a model's name does, or if the mark names it: `proves("...", "deit")`. What is proved of
other families and has no test for this one is listed as not proved.
"""

import re
from collections import Counter

import pytest

from archs.parts.family import read


class Contract:
    """The plugin behind --family."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.claims: dict[str, Counter[str]] = {}
        self.claim_of: dict[str, str] = {}
        self.measured: dict[str, set[str]] = {"BIAS": set(), "SYMMETRY": set()}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            if mark := item.get_closest_marker("proves"):
                self.claims.setdefault(mark.args[0], Counter())
                if self._concerns(item, mark):
                    self.claim_of[item.nodeid] = mark.args[0]
                    name = item.callspec.params.get("name", "") if hasattr(item, "callspec") else ""
                    self.measured.get(mark.args[0].partition(",")[0], set()).add(name.partition("_")[2])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.claim_of])
        items[:] = [item for item in items if item.nodeid in self.claim_of]

    def _concerns(self, item: pytest.Item, mark: pytest.Mark) -> bool:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        words = {re.split(r"[_\- ]", value)[0] for value in given if isinstance(value, str)}
        return self.family in words or self.family in mark.args[1:]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.claims[self.claim_of[report.nodeid]][report.outcome] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section(f"what is proved of {self.family}")
        for claim, outcomes in self.claims.items():
            if failed := outcomes["failed"]:
                line, colour = f"FAILED      {claim}: {failed} of {outcomes.total()} tests", {"red": True}
            elif passed := outcomes["passed"]:
                line, colour = f"proved      {claim} ({passed} test{'s' * (passed > 1)})", {"green": True}
            else:
                why = "skipped" if outcomes["skipped"] else "no test for this family"
                line, colour = f"not proved  {claim}: {why}", {"yellow": True}
            terminalreporter.line(line, **colour)
        source = read(self.family)
        for table, claimed in {"BIAS": source.bias, "SYMMETRY": source.symmetry}.items():
            seen = {claimed(variant) for variant in self.measured[table] if variant}
            if left := [variant for variant in source.tables["VARIANTS"] if claimed(variant) not in seen]:
                line = f"not proved  {table} of {', '.join(left)}: no variant that is measured claims the same"
                terminalreporter.line(line, yellow=True)
