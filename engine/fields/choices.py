"""Orders in which layers lose their mixing, from a table that scripts/choose_layers.py wrote.

So that the second stage of a study can be planned from what the first one chose, and both can be read: the table is
committed. It belongs to the runs that were asked; the sweep that reads it names them. Needs neither torch nor NumPy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.cli import tables
from engine.errors import DATA, Refusal

NEEDED = ("checkpoint", "criterion", "way", "layer", "place")


@dataclass(frozen=True)
class Choice:
    """An order of all layers by one criterion, asked of one run."""

    source: str
    """The signature of that run."""
    criterion: str
    way: str
    """Greedy or once, the draw of a criterion by chance, or empty."""
    order: tuple[int, ...]
    """The layers, in the order in which they go."""

    @property
    def label(self) -> str:
        return f"{self.criterion}, {self.way}" if self.way else self.criterion

    def chosen(self, share: float) -> tuple[int, ...]:
        """The layers that go first, ascending: so many percent of all, at least one."""
        return tuple(sorted(self.order[: max(1, round(share / 100 * len(self.order)))]))


def read(path: Path) -> list[Choice]:
    """All orders of a table. Raises Refusal (DATA) for one that is none, or says no order."""
    places: dict[tuple[str, str, str], dict[int, float]] = {}
    for number, row in enumerate(tables.read(path, NEEDED), 1):
        try:
            layer, place = int(row["layer"]), float(row["place"])
        except (TypeError, ValueError):
            said = f"layer {row['layer']!r}, place {row['place']!r}"
            raise Refusal(f"{path}, row {number}: {said} are no numbers", DATA) from None
        key = (_signature(str(row["checkpoint"])), str(row["criterion"]), str(row["way"] or ""))
        if layer in places.setdefault(key, {}):
            raise Refusal(f"{path}, row {number}: layer {layer} of {key[1]} stands there twice; write it anew", DATA)
        places[key][layer] = place
    for key, own in places.items():
        if sorted(own.values()) != list(range(1, len(own) + 1)):
            raise Refusal(
                f"{path}: places of {' '.join(filter(None, key))} are not 1 to {len(own)}; write it anew", DATA
            )
    return [Choice(*key, tuple(sorted(own, key=own.__getitem__))) for key, own in places.items()]


def of_run(choices: Iterable[Choice], source: str, label: str, where: Path) -> Choice:
    """The order that a criterion gave of a run. Raises Refusal where the table has none."""
    known = [choice for choice in choices if choice.source == source]
    for choice in known:
        if choice.label == label:
            return choice
    told = f"it has: {'; '.join(choice.label for choice in known)}" if known else "it has nothing of this run"
    raise Refusal(f"{where} has no order by '{label}' of run {source}; {told}", DATA)


def _signature(checkpoint: str) -> str:
    """Of a run's folder, or of its last weights, by the folder's name."""
    parts = [part for part in checkpoint.split("/") if part]
    folder = parts[-2] if len(parts) > 1 and parts[-1].endswith(".tar") else parts[-1]
    return folder.partition("-")[0]
