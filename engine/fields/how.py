"""How a run is trained: what must not change its result, and where its data lie.

Importing this imports neither torch nor timm.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engine.fields import values
from engine.fields.limits import startable
from engine.fields.mistakes import Fields

Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, AfterValidator(startable)]
Folder = Annotated[Path, AfterValidator(lambda path: Path(values.home(str(path))))]

DATA_DIR = values.folder("SOFTMLP_DATA", Path(__file__).resolve().parent.parent.parent / "data")


class How(Fields):
    """What does not change a result. (The number of threads does change the last bits; it is kept with the run.)"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Folder = Field(DATA_DIR, description="folder of the .beton files")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    stage: bool = Field(
        False, description="read the .beton files from a copy on the node's disk, $SLURM_TMPDIR or $TMPDIR"
    )
    workers: Annotated[Threads, Field(ge=1)] = Field(1, description="threads that decode and augment")
    threads: Annotated[Threads, Field(ge=0)] = Field(0, description="threads of torch; 0: all cores")
    log_interval: Count = Field(50, description="steps between two lines of metrics.jsonl")
    checkpoint_interval: Annotated[int, Field(ge=0)] = Field(0, description="also save every N steps; 0: epochs only")
    checkpoint_hist: Count = Field(
        2, description="checkpoints to keep while it trains, the newest N; its end drops all"
    )
    keep_epochs: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="also keep the weights after these epochs (0: as initialised), as weights-epoch-N.pth.tar"
    )
    val_interval: Count = Field(
        1, description="epochs between two evaluations on all validation images; the last epoch always is"
    )
    val_samples: Annotated[int, Field(ge=0)] = Field(
        0, description="after the epochs in between, look at so many validation images (never in acc1); 0: at none"
    )
    torchcompile: bool = Field(False, description="torch.compile; changes the last bits")
    channels_last: bool = Field(False, description="weights and images in NHWC order; changes the last bits")
    deterministic: bool = Field(
        False, description="on a GPU: only algorithms that repeat bit for bit, or an error; on a CPU all do anyway"
    )
    log_tensorboard: bool = Field(False, description="also write TensorBoard files into the run's folder")
    log_wandb: bool = Field(False, description="also write to wandb; offline where it cannot be reached")
    wandb_project: str = Field("softer-mlps", description="project for log_wandb")

    @model_validator(mode="after")
    def _consistent(self) -> "How":
        if self.val_samples and self.val_interval == 1:
            raise ValueError(
                f"val_samples {self.val_samples} is for the epochs between two evaluations, and every epoch is "
                "evaluated on all images; give --val-interval 5, say, too"
            )
        return self
