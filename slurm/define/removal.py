"""Runs of a study that removes the mixing of trained models: which layers, how, and the one budget that all heal by.

A way is fields of `Run` beside the layers: what stands there instead (`model_kwargs`), a dilution, or a distillation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import DATA, Refusal
from engine.fields import choices
from engine.fields.choices import Choice
from engine.folder import published, store
from engine.run import Run

TABLE = "choices.csv"
WAYS: dict[str, dict[str, Any]] = {
    "drop": {"replacement": "skip"},
    "double": {},
    "linear": {"dilute_sched": "linear"},
    "cosine": {"dilute_sched": "cosine"},
    "distil": {"replacement": "skip"},
}
"""The ways without a mixer; the name of a file of archs/mixing/ is one, too."""
KEPT = ("model", "dataset", "img_size", "stored_size", "train_samples", "seed", "holdout", "permute")  # of the source


def table(study: str) -> tuple[list[Choice], Path]:
    """The choices of a study, and where they stand: among the results, or in the checkout."""
    places = [place / TABLE for place in published.places(store.results_dir(), study)]
    path = next((place for place in places if place.is_file()), places[0])
    return (choices.read(path) if path.is_file() else []), path


def runs(
    study: str,
    sources: Sequence[Run],
    labels: Sequence[str],
    shares: Sequence[float],
    ways: Sequence[str],
    budget: Mapping[str, Any],
    dilute_epochs: float,
    distil_epochs: float = 1.0,
) -> Iterator[Run]:
    """Every way for every choice and share, a seed after the other; equal layers are one run.

    Args:
        sources: the trained models; a run heals by its source's seed.
        labels: criteria as the table calls them.
        budget: fields of `Run` that are the same in all ways.
        dilute_epochs: of the budget, for the ways that dilute, by the step.
        distil_epochs: of the budget, for the way that distils: the first ones, in which the MLPs of the layers learn
            what the layers gave; the rest heals.

    Raises:
        Refusal (DATA): the table is not there yet, or lacks an order.
    """
    known, path = table(study)
    if not known:
        words = " ".join(str(store.folder_of(source)) for source in sources)
        raise Refusal(
            f"no layers are chosen yet: train the sources, then: "
            f"python scripts/choose_layers.py {words} -k K --study {study}",
            DATA,
        )
    for source in sources:
        for label in labels:
            choice = choices.of_run(known, source.signature, label, path)
            for share in shares:
                for way in ways:
                    yield start(source, choice.chosen(share), way, budget, dilute_epochs, distil_epochs)


def start(
    source: Run,
    layers: Iterable[int],
    way: str,
    budget: Mapping[str, Any],
    dilute_epochs: float = 1.0,
    distil_epochs: float = 1.0,
) -> Run:
    """The run that starts from a source without the mixing of these layers, or on the way there."""
    fields = {key: getattr(source, key) for key in KEPT} | dict(budget)
    fields |= {"initial_checkpoint": str(store.folder_of(source)), "initial_identity": f"run:{source.signature}"}
    own = WAYS.get(way, {"replacement": way})
    if "dilute_sched" in own:
        words = ",".join(map(str, layers))
        own = {**own, "dilute_layers": words, "dilute_epochs": dilute_epochs, "dilute_by": "step"}
        return Run(**fields, **own, model_kwargs=source.model_kwargs)
    fields |= {"distil_epochs": distil_epochs} if way == "distil" else {}
    return Run(**fields, model_kwargs={**source.model_kwargs, **own, "mlp_layers": list(layers)})


def way_of(run: Run) -> str:
    """The name of a run's way."""
    if run.dilute_layers is not None:
        return run.dilute_sched
    if run.distil_epochs is not None:
        return "distil"
    named = run.model_kwargs.get("replacement", "double")
    return {"skip": "drop"}.get(named, named)


def dropped(sweep_runs: Sequence[Run], known: Sequence[Choice]) -> list[Run]:
    """What stands before any healing, for all orders of the table at the shares and from the sources of these runs.

    Runs that are only begun: measured as they start, and never trained.
    """
    found: dict[str, Run] = {}
    for run in sweep_runs:
        source, count = run.initial_identity.removeprefix("run:"), len(run.final_kwargs["mlp_layers"])
        kept = {key: value for key, value in run.model_kwargs.items() if key not in ("mlp_layers", "replacement")}
        for choice in known:
            if choice.source != source:
                continue
            for own in ({"replacement": "skip"}, {}):
                kwargs = {**kept, **own, "mlp_layers": sorted(choice.order[:count])}
                usual = {key: Run.model_fields[key].default for key in ("dilute_layers", "dilute_epochs", "best_from")}
                usual |= {"dilute_sched": "linear", "dilute_by": "epoch", "distil_epochs": None}
                made = run.but(model_kwargs=kwargs, **usual)
                found.setdefault(made.signature, made)
    return list(found.values())
