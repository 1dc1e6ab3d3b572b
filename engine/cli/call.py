"""One training as a call from Python, which returns what came of it: `from engine import train_run`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine import models, transfer
from engine.data.ensure import ensure, settled
from engine.data.sets import lookup
from engine.errors import CHECKPOINT, DATA, USAGE, Refusal
from engine.folder import predictions, store
from engine.run import LAST, How, Run, make_how, make_run, unknown
from engine.train import train

log = logging.getLogger("softmlp")


@dataclass(frozen=True)
class Result:
    """A finished run as a value."""

    run: Run
    folder: Path
    history: list[dict[str, float]]
    """A dict per epoch: `train_loss`, `eval_loss`, `eval_top1`, `eval_top5` (percent), `lr`."""

    @property
    def acc1(self) -> float:
        """The accuracy of record, that of the last epoch, in percent."""
        return self.history[-1]["eval_top1"]

    @property
    def predictions(self) -> predictions.Predictions:
        """Predicted class and label of each validation image, (N,) NumPy arrays both."""
        found = predictions.read(self.folder)
        if found is None:
            raise Refusal(f"{self.folder} has no {predictions.FILE}: an older version trained it")
        return found

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode, on the CPU."""
        num_classes = transfer.read(self.folder / LAST)["num_classes"]
        entry = lookup(self.run.dataset)
        in_chans = entry.in_chans if entry else 3
        model = models.create(self.run.ended, num_classes, in_chans)
        transfer.load_weights(self.folder / LAST, self.run.ended, model, num_classes, in_chans, new_head=False)
        return model.eval()


def train_run(run: Run | None = None, *, output: Path | str | None = None, **fields: Any) -> Result:
    """Train a run to its end, or see that it is done, and return what came of it: scripts/train.py from Python.

    Args:
        run: what to train; fields then are those of How alone.
        output: folder of all results (default: results/, or SOFTMLP_RESULTS).
        fields: of Run and of How, as flags of scripts/train.py: `model="mixer_nano", lr=1e-3, threads=1`.

    Raises Refusal, in one line, for what the user can mend, as a misspelt field or a missing data set.
    """
    known = [*(How.model_fields if run else [*Run.model_fields, *How.model_fields])]
    for key in fields:
        if key not in known:
            raise Refusal(unknown("field", key, known))
    how = make_how({key: value for key, value in fields.items() if key in How.model_fields})
    if run is None:
        run = make_run({key: value for key, value in fields.items() if key in Run.model_fields})
        run = run if "stored_size" in fields else settled(run, how.data_dir, log.warning)
    folder = store.folder_of(run, Path(output) if output else store.results_dir())
    models.pick_device(how)
    models.preflight(run, folder)
    fresh = not folder.exists()
    ensure(run.dataset, run.stored, how.data_dir, say=log.info, splits=run.splits)
    try:
        train(run, folder, how)
    except Refusal as refusal:
        if fresh and refusal.code in (USAGE, DATA, CHECKPOINT):  # found out only by reading data and weights
            store.withdraw(folder)
        raise
    return Result(run, folder, store.read_summary(folder))
