"""Mirrors of summary.csv in TensorBoard and wandb, where asked for. The files of the run stay the only truth."""

from pathlib import Path
from typing import Any

from engine.errors import Refusal
from engine.run import How, Run


class Trackers:
    """Writes one row per epoch. Resuming continues the same curves: steps are epochs, wandb's id is the signature."""

    def __init__(self, run: Run, folder: Path, how: How) -> None:
        self.run, self.folder, self.how = run, folder, how
        self._board = self._wandb = None

    def open(self, epochs: int) -> None:
        """Begin, or go on after so many epochs. Raises Refusal where a package is missing."""
        run, folder, how = self.run, self.folder, self.how
        if how.log_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise Refusal("--log-tensorboard needs a package: pip install tensorboard") from None
            # Epochs after the checkpoint that the run resumes from are written again: these hide the older points.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs)
        if how.log_wandb:
            try:
                import wandb
            except ImportError:
                raise Refusal("--log-wandb needs a package: pip install wandb") from None
            mode = None if _online(wandb) else "offline"
            identity = {"project": how.wandb_project, "id": run.signature, "name": run.name, "resume": "allow"}
            self._wandb = wandb.init(dir=str(folder), config=run.record(), mode=mode, **identity)

    def write(self, row: dict[str, Any]) -> None:
        """One epoch; what was not measured in it has no point in the curves."""
        values = {key: value for key, value in row.items() if key != "epoch" and value is not None}
        if self._board:
            for key, value in values.items():
                self._board.add_scalar(key, value, row["epoch"])
            self._board.flush()
        if self._wandb:
            self._wandb.log(values, step=row["epoch"])

    def close(self) -> None:
        """Write what is left, however the attempt ended: the next one, or another run, may follow in this process."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _online(wandb: Any) -> bool:
    """Whether wandb can be reached: a login is there and its host answers within two seconds."""
    import socket
    from urllib.parse import urlparse

    if not wandb.api.api_key:
        return False
    try:
        socket.create_connection((urlparse(wandb.api.settings("base_url")).hostname, 443), timeout=2).close()
    except OSError:
        return False
    return True
