"""Tuning by optuna, asked and told: rounds of trials that its TPE proposes, each cut by successive halving.

All trials of a round train for about a ninth of the epochs, the best third of them anew for a third, and the best third
of these for all. Every length is a run of its own with its whole schedule, as a schedule cut short ranks recipes by
another measure. What was asked and told lies in a journal file in the sweep's folder, which needs no server; how far a
round is follows from the folders of its runs. So whatever is killed, repeating the command goes on: a killed run is
resumed, or failed, and its trial with it; none is left behind as running.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import BUSY, Refusal
from engine.folder import store
from engine.run import Run
from slurm.define import grid
from slurm.define.search import Range, Search, Train, points, round_to
from slurm.define.sweep import Sweep
from slurm.queue import claims, worker
from slurm.queue.progress import Status

ETA = 3  # one in so many goes on
ROUND = ETA**2
JOURNAL = "optuna.journal"


def search(given: Search, train: Train) -> tuple[Sweep, list[Status]]:
    """Ask, train and tell until every model has had its trials; the sweep of all runs, and how they stand.

    Returns before the end where `train` does, with runs that have not ended.

    Raises Refusal: optuna is not installed, or another process is at it (BUSY).
    """
    try:
        import optuna
    except ImportError:
        raise Refusal("--search optuna needs a package that is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = given.sweep(points(replace(given, kind="random", trials=1))).folder  # refused before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        studies = _open(given, folder / JOURNAL)
        while True:
            for study in studies:
                _ask(given, study)
            rounds = {study: _rounds(given, study) for study in studies}
            cells = [cell for study in studies for part in rounds[study] for cell in part.cells]
            sweep = given.sweep(cells)
            if all(part.ended for study in studies for part in rounds[study]):
                if not sum(part.tell() for study in studies for part in rounds[study]):
                    return sweep, [worker.look(folder) for folder in sweep.folders]
                continue
            statuses = train(sweep)
            if not all(map(worker.ended, statuses)):
                return sweep, statuses


def lengths(epochs: int) -> list[int]:
    """Epochs of the steps of successive halving, at most three: 3, 10, 30 for 30."""
    return sorted({max(1, round(epochs / ETA**power)) for power in range(3)})


def shortened(run: Run, epochs: int) -> grid.Cell:
    """The fields that make a run so long, the parts of its schedule in proportion."""
    share = epochs / run.epochs
    cut = {"warmup_epochs": run.warmup_epochs * share, "cooldown_epochs": math.floor(run.cooldown_epochs * share)}
    if run.sched == "step":
        cut["decay_epochs"] = run.decay_epochs * share
    return {"epochs": epochs} | {key: value for key, value in cut.items() if value != getattr(run, key)}


class Round:
    """Trials of one study that compete with one another, and how far they are: all read from journal and folders."""

    def __init__(self, given: Search, study: Any, trials: Sequence[Any]) -> None:
        self.study, self.trials = study, trials
        self.cells: list[grid.Cell] = []
        self.scores: dict[int, dict[int, float]] = {trial.number: {} for trial in trials}
        """By trial and epochs, top-1 in percent; NaN where the run failed or was given up."""
        self.ended = True
        going = list(trials)
        for self.longest in lengths(_base(given).epochs):
            self._train(given, going)
            if not self.ended:
                return
            best = sorted((trial for trial in going if self._score(trial) == self._score(trial)), key=self._rank)
            going = best[: max(1, len(best) // ETA)]

    def _train(self, given: Search, going: Sequence[Any]) -> None:
        for trial in going:
            full = grid.run_of(given.fields, point := _point(given, self.study.study_name, trial))
            cell = point | shortened(full, self.longest)
            self.cells.append(cell)
            status = worker.look(store.folder_of(grid.run_of(given.fields, cell)))
            self.ended &= worker.ended(status)
            self.scores[trial.number][self.longest] = status["acc1"] if status["state"] == store.DONE else math.nan

    def _score(self, trial: Any) -> float:
        return self.scores[trial.number][self.longest]

    def _rank(self, trial: Any) -> tuple[float, int]:
        return -self._score(trial), trial.number

    def tell(self) -> int:
        """Tell optuna what came of each trial that it still waits for; how many these were."""
        from optuna.trial import Trial, TrialState

        told = 0
        for trial in self.trials:
            if trial.state.is_finished():
                continue
            scores = self.scores[trial.number]
            failed = any(math.isnan(score) for score in scores.values())
            for epochs, score in scores.items():
                if not math.isnan(score) and epochs not in trial.intermediate_values:
                    Trial(self.study, trial._trial_id).report(score, epochs)
            if failed:
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif self.longest in scores:
                self.study.tell(trial.number, scores[self.longest])
            else:
                self.study.tell(trial.number, state=TrialState.PRUNED)
            told += 1
        return told


def _open(given: Search, path: Path) -> list[Any]:
    """One study per model, in one journal; what a process left there that was killed while it wrote is cut off."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # nobody else is here
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
        store.write_bytes(path, text[: text.rfind(b"\n") + 1])
    storage = JournalStorage(JournalFileBackend(str(path)))
    return [
        optuna.create_study(study_name=model, storage=storage, direction="maximize", load_if_exists=True)
        for model in given.models
    ]


def _ask(given: Search, study: Any) -> None:
    """Ask for the trials of the next round, or for those that are missing in an unfinished one."""
    import optuna
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "round" not in trial.user_attrs:  # the process that asked for it was killed before it could note it
            study.tell(trial.number, state=TrialState.FAIL)
    rounds = _by_round(study)
    current = max(rounds, default=-1)
    if current < 0 or all(trial.state.is_finished() for trial in rounds[current]):
        current += 1
    before = sum(len(trials) for number, trials in rounds.items() if number < current)
    size = min(ROUND, given.trials - before)
    for _ in range(len(rounds.get(current, ())), size):
        # A sampler for each question, so that a process that was killed changes no answer.
        seed = given.seed + len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=ROUND, seed=seed, constant_liar=True)
        study.ask(fixed_distributions=_distributions(given)).set_user_attr("round", current)


def _by_round(study: Any) -> dict[int, list[Any]]:
    rounds: dict[int, list[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        if "round" in trial.user_attrs:
            rounds.setdefault(trial.user_attrs["round"], []).append(trial)
    return rounds


def _rounds(given: Search, study: Any) -> list[Round]:
    return [Round(given, study, trials) for _, trials in sorted(_by_round(study).items())]


def _distributions(given: Search) -> dict[str, Any]:
    """Of a list of values, optuna chooses the place: values may be lists themselves."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, values in given.space.items():
        if not isinstance(values, Range):
            found[key] = CategoricalDistribution(range(len(values)))
        elif values.whole:
            found[key] = IntDistribution(round(values.low), round(values.high), log=True)
        else:
            found[key] = FloatDistribution(values.low, values.high, log=True)
    return found


def _point(given: Search, model: str, trial: Any) -> grid.Cell:
    point: grid.Cell = {"model": model}
    for key, values in given.space.items():
        value = trial.params[key]
        listed = not isinstance(values, Range)
        point[key] = values[value] if listed else value if isinstance(value, int) else round_to(value)
    return point


def _base(given: Search) -> Run:
    return grid.run_of(given.fields, {"model": given.models[0]})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with claims.hold(folder / "tune.lock") as file:
        if file is None:
            raise Refusal(f"{folder.name} is being tuned by another process", BUSY)
        yield
