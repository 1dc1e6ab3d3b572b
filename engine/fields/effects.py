"""Which fields of a run go together: when each has an effect, as one table, and which exclude each other.

Two runs of the same result must have one signature, so a field that would change nothing is refused. The test of this
table trains pairs of runs that differ in one field alone: each is refused or ends with other weights or figures.
Imports next to nothing, so that a plan and --help do not wait.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from engine.fields.sizes import holds, pair, text
from engine.fields.softness import WINDOWED


class Optimizer(NamedTuple):
    """What timm 1.0.31's optimizer of a name takes, with its own values; None: it has no such argument."""

    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: bool = False
    states: int = 1
    """Tensors that it keeps for each weight."""


OPTIMIZERS = {
    "adamw": Optimizer((0.9, 0.999), 1e-8, states=2),
    "adam": Optimizer((0.9, 0.999), 1e-8, states=2),
    "nadamw": Optimizer((0.9, 0.999), 1e-8, states=2),
    "sgd": Optimizer(momentum=True),
    "momentum": Optimizer(momentum=True),
    "rmsprop": Optimizer(eps=1e-8, momentum=True, states=2),
    "lamb": Optimizer((0.9, 0.999), 1e-6, states=2),
    "lion": Optimizer((0.9, 0.99)),
    "muon": Optimizer((0.9, 0.95), 1e-7, momentum=True),
}
# Fields that say how training images are changed.
AUGMENTED = ("crop_pad", "crop_fill", "crop_step", "hflip", "scale", "ratio", "aa", "color_jitter", "reprob", "remode")
# Those to which it matters where a pixel is; scale is refused with a shuffle before it.
SPATIAL = ("crop_pad", "hflip", "aa", "reprob")
DECAYING = ("cosine", "linear")  # the schedules that end at min_lr


class Effect(NamedTuple):
    """What a field needs to change anything, in words and as a question to the run."""

    needs: str
    holds: Callable[[Any], bool]


def _opt(word: str) -> Effect:
    names = [name for name, own in OPTIMIZERS.items() if getattr(own, word)]
    return Effect(f"an opt that has {word} ({', '.join(names)})", lambda run: run.opt in names)


_DECAYING = Effect(f"sched {' or '.join(DECAYING)}", lambda run: run.sched in DECAYING)
_CROPPED = Effect("crop_pad", lambda run: run.crop_pad > 0)
_STEP = Effect("sched step", lambda run: run.sched == "step")
_FULL = Effect("mode full", lambda run: run.mode == "full")
_DILUTED = Effect("dilute_layers", lambda run: run.dilute_layers is not None)
_ANNEALED = Effect("strictness_to", lambda run: run.strictness_to is not None)
_PENALISED = Effect("penalty", lambda run: run.penalty is not None)
_EMA = Effect("model_ema", lambda run: run.model_ema)

# A field that is not here has an effect in every run.
EFFECTS = {
    "momentum": _opt("momentum"),
    "opt_betas": _opt("betas"),
    "opt_eps": _opt("eps"),
    "layer_decay": _FULL,
    "body_lr_scale": _FULL,
    "drop_path": _FULL,  # a frozen body stays in evaluation mode
    "decay_epochs": _STEP,
    "decay_rate": _STEP,
    "min_lr": _DECAYING,
    "cooldown_epochs": _DECAYING,
    "warmup_epochs": Effect("another sched than triangular", lambda run: run.sched != "triangular"),
    "warmup_lr": Effect("warmup_epochs", lambda run: run.warmup_epochs > 0),
    "crop_fill": _CROPPED,
    "crop_step": _CROPPED,
    "ratio": Effect("scale", lambda run: run.scale is not None),
    "remode": Effect("reprob", lambda run: run.reprob > 0),
    "dilute_epochs": _DILUTED,
    "dilute_sched": _DILUTED,
    "dilute_by": _DILUTED,
    "prune_by": Effect("prune_share", lambda run: run.prune_share > 0),
    "prune_share": Effect("prune_by", lambda run: run.prune_by is not None),
    "prune_rewind": Effect(
        "prune_by and initial_checkpoint", lambda run: run.prune_by is not None and run.initial_checkpoint is not None
    ),
    "strictness_epochs": _ANNEALED,
    "strictness_sched": _ANNEALED,
    "penalty": _FULL,  # its matrices are the body's
    "penalty_weight": _PENALISED,
    "penalty_beta": Effect("penalty beta_lasso", lambda run: run.penalty == "beta_lasso"),
    "penalty_kernel_size": Effect("penalty toeplitz or mask", lambda run: run.penalty in WINDOWED),
    "penalty_stride": Effect("penalty toeplitz or mask", lambda run: run.penalty in WINDOWED),
    "distil_epochs": Effect(
        "initial_checkpoint in mode full", lambda run: run.initial_checkpoint is not None and run.mode == "full"
    ),
    "model_ema_decay": _EMA,
    "model_ema_warmup": _EMA,
    "amp_dtype": Effect("amp", lambda run: run.amp),
    "initial_identity": Effect("initial_checkpoint", lambda run: run.initial_checkpoint is not None),
}


def fault(run: Any, defaults: dict[str, Any]) -> str | None:
    """What is wrong with the fields of a run taken together, in one line; None if nothing is.

    Args:
        defaults: of all fields.
    """
    return idle(run, defaults) or _conflict(run, defaults)


def _conflict(run: Any, defaults: dict[str, Any]) -> str | None:
    """Two fields that exclude each other."""
    for key in ("min_lr", "warmup_lr"):
        if getattr(run, key) > run.lr:
            return f"{key} {getattr(run, key):g} is above lr {run.lr:g}"
    for key in ("scale", "ratio"):
        low, high = getattr(run, key) or (1, 1)
        if low > high:
            return f"{key} {low:g} {high:g}: the smaller one comes first"
    if run.stored_size is not None and not holds(run.stored_size, run.img_size):
        return (
            f"stored_size {text(run.stored_size)} is less than img_size {text(run.img_size)}; store the images larger"
        )
    if run.opt == "sgd" and not run.momentum:
        return "opt sgd is Nesterov and needs a momentum; opt momentum with momentum 0 is plain SGD"
    if run.scale is not None and run.crop_pad:
        return "scale (random resized crop) and crop_pad (random crop) are two ways to crop; leave one out"
    if line := _crop_fault(run):
        return line
    if run.aa is not None and run.color_jitter:
        return "aa changes colours itself and leaves color_jitter out"
    if run.aug_repeats > 1 and all(getattr(run, key) == defaults[key] for key in AUGMENTED):
        return f"aug_repeats {run.aug_repeats} repeats the same pixels without any augmentation"
    if run.permute == "pixels_first" and run.scale is not None:
        return "permute pixels_first shuffles whole images, and scale cuts and resizes as it reads; use crop_pad"
    if run.permute == "pixels_first" and all(getattr(run, key) == defaults[key] for key in SPATIAL):
        return f"permute pixels_first is permute pixels without any of {', '.join(SPATIAL)}; say permute pixels"
    if run.layer_decay is not None and run.body_lr_scale != 1.0:
        return "layer_decay and body_lr_scale are two ways to slow the body down; leave one out"
    if run.warmup_epochs + run.cooldown_epochs > run.epochs:
        both = f"warmup_epochs {run.warmup_epochs:g} and cooldown_epochs {run.cooldown_epochs}"
        return f"{both} are longer than epochs {run.epochs}"
    return None


def _crop_fault(run: Any) -> str | None:
    """What is wrong with the shifts of a random crop."""
    side = min(pair(run.img_size))
    begin = f"crop_pad {run.crop_pad} at {text(run.img_size)} pixels:"
    if run.crop_pad >= side:
        return f"{begin} crops beside the image are black; give less"
    if run.crop_fill == "wrap" and run.crop_pad > side // 2:
        return f"{begin} crop_fill wrap names some shifts twice; {side // 2} gives each as often as the others"
    if run.crop_pad % run.crop_step:
        nearest = max(run.crop_pad // run.crop_step, 1) * run.crop_step
        return f"{begin} it is not a multiple of crop_step {run.crop_step}; {nearest} is"
    return None


def idle(run: Any, defaults: dict[str, Any]) -> str | None:
    """What is wrong with the first field that differs from its default and changes nothing; None if there is none."""
    for field, effect in EFFECTS.items():
        value = getattr(run, field)
        if value != defaults[field] and not effect.holds(run):
            shown = " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else value
            usual = f" (default: {defaults[field]})" if defaults[field] is not None else ""
            return f"{field} {shown} does nothing without {effect.needs}; leave it out{usual}"
    return None
