"""Start from weights trained elsewhere: read the file safely, convert, adapt to the run, load; or say why not.

`Run.initial_checkpoint` is a file of any public layout that `archs.convert_checkpoint` knows (.pth, .pth.tar, .npz,
.safetensors), or the folder of a run of ours. Only the first start reads it: afterwards the run's own checkpoints hold
everything, and the file may be gone, but not changed.
"""

import hashlib
import logging
from pathlib import Path

from torch import nn

from archs.parts.convert import adapt
from engine.errors import CHECKPOINT, Refusal
from engine.folder import store
from engine.folder.weights import read
from engine.run import LAST, Run, identify

log = logging.getLogger("softmlp")


def check(run: Run, folder: Path) -> dict[str, str]:
    """What env.json records of the run's initial checkpoint, its SHA-256; {} if there is none, or no need of it.

    Raises Refusal (CHECKPOINT): the file is not there and the run has no checkpoint of its own yet, or it was changed
    since the run began.
    """
    if run.initial_checkpoint is None:
        return {}
    path = file_of(run.initial_checkpoint)
    if not path.is_file():
        if any(folder.glob("checkpoint-*.pth.tar")) or (folder / LAST).exists():
            return {}
        first = "; the run that it belongs to comes first" if run.initial_identity.startswith("run:") else ""
        raise Refusal(f"initial_checkpoint {path} does not exist{first}", CHECKPOINT)
    if (found := identify(run.initial_checkpoint)) != run.initial_identity:
        raise Refusal(
            f"initial_checkpoint {path} was changed since {run.name} was described ({run.initial_identity}, now "
            f"{found}); put it back, or leave out initial_identity for another run",
            CHECKPOINT,
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refusal(f"initial_checkpoint {path}: {error.strerror}", CHECKPOINT) from None
    before = store.read_json(folder / "env.json").get("initial_checkpoint_sha256", digest)
    if before != digest:
        raise Refusal(
            f"initial_checkpoint {path} was changed since {run.name} began; put it back, or remove {folder}", CHECKPOINT
        )
    return {"initial_checkpoint_sha256": digest}


def load(run: Run, model: nn.Module, num_classes: int, in_chans: int) -> None:
    """The initial checkpoint into the run's fresh model; another number of classes keeps the fresh head.

    Raises Refusal (CHECKPOINT) for a file that cannot be read or does not fit.
    """
    load_weights(file_of(run.initial_checkpoint), run, model, num_classes, in_chans)


def load_weights(
    path: Path, run: Run, model: nn.Module, num_classes: int, in_chans: int, *, new_head: bool = True
) -> None:
    """As `load`, from any file. Where `new_head` is off, another number of classes is refused too."""
    data = {"img_size": run.img_size, "num_classes": num_classes, "in_chans": in_chans}
    try:
        state, notes = adapt(run.model, read(path), model, new_head=new_head, **data, **run.model_kwargs)
    except (ValueError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise Refusal(f"{path}: {line}", CHECKPOINT) from None
    model.load_state_dict(state)
    level = logging.WARNING if notes else logging.INFO  # what was changed is seen where no log is kept, too
    log.log(level, "weights of %s%s", path, "".join(f"; {note}" for note in notes))


def file_of(path: str | Path) -> Path:
    """The weight file that a path means: itself, or the last weights of a run's folder."""
    path = Path(path).expanduser()
    return path / LAST if path.is_dir() else path
