"""What becomes of every flag of timm's train.py and of this testbed's ancestors: it is here, or what to do instead.

A flag that timm has and this table does not name is a flag of scripts/train.py, of the same meaning; its default may
differ. timm_flags.txt lists timm's flags and says where they are from.
"""

from collections.abc import Collection
from pathlib import Path

LIST = Path(__file__).with_suffix(".txt")

# Another word for the same. The first three lines are timm's, then Scaling MLPs', then those of the rank-pruning study.
RENAMED = {
    "--dr": "--decay-rate",
    "--use-deterministic-algorithms": "--deterministic",
    "--train-num-samples": "--train-samples",
    "--recovery-interval": "--checkpoint-interval",
    "--data-path": "--data-dir",
    "--architecture": "--model",
    "--resolution": "--img-size",
    "--crop-resolution": "--img-size",
    "--data-resolution": "--img-size",
    "--n-train": "--train-samples",
    "--optimizer": "--opt",
    "--accum-steps": "--grad-accum-steps",
    "--scheduler": "--sched",
    "--smooth": "--smoothing",
    "--clip": "--clip-grad",
    "--crop-scale": "--scale",
    "--crop-ratio": "--ratio",
    "--body-learning-rate-multiplier": "--body-lr-scale",
    "--checkpoint-path": "--initial-checkpoint",
    "--checkpoint-folder": "--output",
    "--save-freq": "--checkpoint-interval",
    "--wandb": "--log-wandb",
    "--num-workers": "--workers",
    "--model-name": "--model",
    "--data-name": "--dataset",
    "--output-dir": "--output",
    "--label-smoothing": "--smoothing",
    "--mixup-alpha": "--mixup",
    "--cutmix-alpha": "--cutmix",
    "--lr-scheduler": "--sched",
    "--lr-warmup-epochs": "--warmup-epochs",
    "--lr-step-size": "--decay-epochs",
    "--lr-gamma": "--decay-rate",
    "--lr-min": "--min-lr",
    "--auto-augment": "--aa",
    "--random-erase": "--reprob",
    "--clip-grad-norm": "--clip-grad",
    "--train-crop-size": "--img-size",
    "--ra-reps": "--aug-repeats",
    "--weights": "--initial-checkpoint",
    "--print-freq": "--log-interval",
}

_OF_DATA = "facts of the data set (engine/data/sets.py), measured for a folder by scripts/make_beton.py"
_ONE_SPLIT = "make_beton.py writes the two splits train and val; --holdout sets images of train aside"
_READERS = "make_beton.py reads folders of images and the named data sets only"
_RESUME = "repeat the command: a run goes on where it was, with its optimizer"
_SAVED = "the last two checkpoints (--checkpoint-hist), the best weights and the last ones are kept"
_SCALED = "give --lr itself, the peak; it is not scaled by the batch size"
_NOISE = "the schedules here have no noise"
_CYCLE = "the schedules here have one cycle"
_STEP = "--sched step has --decay-epochs and --decay-rate"
_EPOCHS = "every epoch is one pass; set --epochs"
_LOSS = "the losses are cross-entropy and --bce-loss, with --smoothing"
_MIXUP = "mixup and cutmix are drawn per batch, always, and one or the other with equal chance"
_SPLITS = "augmentation has one split"
_COLOUR = "--color-jitter changes brightness, contrast and saturation of every image; --aa has policies"
_DROP = "the models here have --drop-path only; for a model of timm say --model-kwargs drop_rate=0.1"
_TIMM_MODEL = "for a model of timm: --model-kwargs"
_DISTRIBUTED = "start with torchrun, or srun; buffers of process 0 are sent to all at each step"
_FLOAT32 = "weights are float32; --amp computes in --amp-dtype"
_LOADER = "FFCV decodes in --workers threads of this process; there is no DataLoader to set up"
_SIZES = "an epoch has one --img-size and one --batch-size"
_NAFLEX = "there is no NaFlex loader; images are squares of --img-size"
_TEACHER = "there is no distillation"
_MULTILABEL = "an image has one label here"

# Answer -> the flags that it answers.
_ANSWERS: dict[str, tuple[str, ...]] = {
    "only flags are taken; the folder of the .beton files is --data-dir": ("data",),
    _ONE_SPLIT: ("--train-split", "--val-split", "--val-num-samples"),
    _READERS: ("--class-map", "--input-img-mode", "--input-key", "--target-key", "--dataset-trust-remote-code"),
    "make_beton.py --dataset NAME downloads what can be downloaded": ("--dataset-download",),
    "--initial-checkpoint FILE starts from weights; download them first": ("--pretrained", "--pretrained-path"),
    _RESUME: ("--resume", "--no-resume-opt", "--start-epoch", "--reload"),
    _OF_DATA: ("--num-classes", "--in-chans", "--mean", "--std"),
    f"{_TIMM_MODEL} global_pool=avg": ("--gp",),
    "--img-size N; channels are those of the data set": ("--input-size",),
    "make_beton.py stores centre squares; --scale and --crop-pad crop training images": (
        "--crop-pct",
        "--interpolation",
        "--train-interpolation",
        "--train-crop-mode",
        "--val-resize-size",
        "--val-crop-size",
    ),
    "validation takes --batch-size": ("-vb", "--validation-batch-size"),
    "--torchcompile compiles with torch's defaults": ("--fuser", "--torchscript", "--torchcompile-mode"),
    "activations are kept; a smaller -b with --grad-accum-steps needs less memory": ("--grad-checkpointing",),
    "norms are torch's": ("--fast-norm",),
    "the head starts as the family's paper says (init of its file)": ("--head-init-scale", "--head-init-bias"),
    _FLOAT32: ("--model-dtype",),
    _DISTRIBUTED: (
        "--no-ddp-bb",
        "--local-rank",
        "--sync-bn",
        "--dist-bn",
        "--world-size",
        "--dist-url",
    ),
    "steps are not waited for": ("--synchronize-step",),
    "--device is cpu or cuda": ("--device-modules",),
    "--clip-grad clips the norm": ("--clip-mode",),
    "--layer-decay has one rate, from the head down": ("--layer-decay-min-scale", "--layer-decay-no-opt-scale"),
    "say --opt-eps, --opt-betas, --momentum, --weight-decay": ("--opt-kwargs",),
    "norms and biases are not decayed, all else by --weight-decay": (
        "--norm-weight-decay",
        "--bias-weight-decay",
        "--transformer-embedding-decay",
    ),
    "schedules always go by the step": ("--sched-on-updates",),
    _SCALED: ("--lr-base", "--lr-base-size", "--lr-base-scale"),
    _NOISE: ("--lr-noise", "--lr-noise-pct", "--lr-noise-std"),
    _CYCLE: ("--lr-cycle-mul", "--lr-cycle-decay", "--lr-cycle-limit", "--lr-k-decay"),
    _EPOCHS: ("--epoch-repeats", "--train-batches-per-epoch", "--train-steps-per-epoch"),
    _STEP: ("--decay-milestones",),
    "the warm-up is a part of the epochs, and the schedule goes on from its end": ("--warmup-prefix",),
    "there is no plateau schedule: a run would depend on its validation images": ("--patience-epochs",),
    "--sched is cosine, constant, linear, step or triangular": ("--lr-decay-fn", "--lr-stable-timescale"),
    "the warm-up is linear from --warmup-lr": ("--lr-warmup-method", "--lr-warmup-decay"),
    "augmentation is off unless it is asked for": ("--no-aug", "--augment"),
    "images are flipped left to right only, by --hflip": ("--vflip",),
    _COLOUR: ("--color-jitter-prob", "--grayscale-prob", "--gaussian-blur-prob"),
    "the magnitude is in the name, as --aa rand-m9-mstd0.5": ("--ra-magnitude",),
    "there is no AugMix; --aa has RandAugment, AutoAugment and TrivialAugment": ("--augmix-severity",),
    "--aug-repeats N repeats images in an epoch": ("--ra-sampler",),
    _SPLITS: ("--aug-splits", "--jsd-loss", "--resplit", "--split-bn"),
    _LOSS: ("--bce-sum", "--bce-target-thresh", "--bce-pos-weight", "--loss"),
    "one rectangle is erased, with probability --reprob": ("--recount",),
    _MIXUP: ("--cutmix-minmax", "--mixup-prob", "--mixup-switch-prob", "--mixup-mode", "--mixup-off-epoch"),
    _DROP: ("--drop", "--drop-connect", "--drop-block", "--drop-rate"),
    f"{_TIMM_MODEL} of that model; BatchNorm here is torch's": ("--bn-momentum", "--bn-eps"),
    "the average is kept where the weights are, and updated at each step": (
        "--model-ema-force-cpu",
        "--model-ema-steps",
    ),
    "pixels depend on --seed, the epoch and the image, not on the worker": ("--worker-seeding",),
    "every epoch is validated, or every Nth: --val-interval N": ("--calculate-stats",),
    _SAVED: ("--save-epochs", "--save"),
    "make_beton.py --verify FILE draws a sheet of images": ("--save-images",),
    _LOADER: ("--pin-mem", "--no-prefetcher", "--use-multi-epochs-loader", "--cache-dataset", "--backend", "--use-v2"),
    "acc1 is the metric; of record is that of the last epoch": ("--eval-metric",),
    "python scripts/validate.py RUN --tta N": ("--tta",),
    "python scripts/validate.py RUN validates alone": ("--test-only",),
    "a run is called by its signature; --wandb-project is taken": (
        "--wandb-tags",
        "--wandb-resume-id",
        "--wandb-entity",
    ),
    _SIZES: (
        "--train-img-sizes",
        "--train-batch-sizes",
        "--train-size-probs",
        "--train-size-schedule",
        "--train-size-schedule-spread",
        "--train-size-random-mix",
        "--variable-batch-loss-scale",
    ),
    _NAFLEX: (
        "--naflex-loader",
        "--naflex-train-seq-lens",
        "--naflex-max-seq-len",
        "--naflex-patch-sizes",
        "--naflex-patch-size-probs",
        "--naflex-loss-scale",
        "--naflex-patchify-channels-first",
    ),
    _TEACHER: (
        "--kd-model-name",
        "--kd-distill-type",
        "--kd-loss-type",
        "--distill-loss-weight",
        "--task-loss-weight",
        "--kd-temperature",
        "--kd-student-feature-dim",
        "--kd-teacher-feature-dim",
        "--kd-token-distill-type",
    ),
    _MULTILABEL: ("--task", "--target-format", "--multilabel-threshold"),
    "stop with Ctrl-C, which saves; the schedule is that of --epochs": ("--stop-epoch",),
    "tune with python scripts/tune.py --grid lr=1e-3,1e-2": ("--lr-grid",),
    "tune with python scripts/tune.py --grid weight_decay=0,0.05": ("--wd-grid",),
    "an argument of the model, as --model-kwargs act=gelu": ("--act", "--normalization"),
}
ANSWERS = {flag: answer for answer, flags in _ANSWERS.items() for flag in flags}


def names() -> list[str]:
    """timm's flags, in its order."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def answer(flag: str, known: Collection[str]) -> str | None:
    """One line on a flag that a command with the flags `known` lacks; None for one that timm and ours never had.

    Underscores are dashes. What timm has is told to commands that train only.
    """
    key = flag.replace("_", "-")
    if RENAMED.get(key) in known:
        return f"{flag} is called {RENAMED[key]} here"
    if "--lr" not in known:
        return None
    word = key if key.startswith("-") else "data"
    positive = f"--{word.removeprefix('--no-')}"
    told = ANSWERS.get(word) or (ANSWERS.get(positive) if word.startswith("--no-") else None)
    return f"{flag} is not taken: {told}" if told else None


def is_foreign(flag: str) -> bool:
    """Whether it is a flag of timm or of an ancestor, for which a flag spelt alike would be a wrong guess."""
    key = flag.replace("_", "-")
    return key in RENAMED or key in ANSWERS or key in names()


def table(known: Collection[str]) -> str:
    """All flags of timm's train.py, a line each, with what they are in a command with the flags `known`."""
    width = max(map(len, names()))
    rows = ["timm's train.py, and here (of the same name: the same; the default may differ)"]
    for flag in names():
        told = "" if flag in known else (answer(flag, known) or "").removeprefix(f"{flag} is ")
        rows.append(f"{flag:{width}}  {told}".rstrip())
    return "\n".join(rows)
