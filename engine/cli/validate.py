"""Weights from a file, a run's or anybody's, before the validation images of a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archs.parts.family import read
from engine.data.sets import lookup
from engine.errors import CHECKPOINT, Refusal
from engine.fields import sizes
from engine.fields.effects import AUGMENTED
from engine.fields.values import pairs
from engine.run import How, Run, make_run

if TYPE_CHECKING:
    import numpy as np

FOREIGN = ("model", "model_kwargs", "dataset", "img_size")  # what must be said of a file that does not say what it is
# What counts of the run that left the weights.
JUDGED = (*FOREIGN, "stored_size", "batch_size", "seed", "holdout", "permute", "amp", "amp_dtype", *AUGMENTED)


def described(checkpoint: Path, named: dict[str, Any], changes: dict[str, Any], split: str) -> tuple[Path, Run]:
    """The file of weights, and the run that it holds or that the flags describe.

    Args:
        named: given of FOREIGN.
        changes: fields to judge it with instead of its own.
        split: val, or holdout: what the run set aside.

    Raises Refusal: no weights there (CHECKPOINT), flags that contradict the file, or a holdout that the run has not.
    """
    from engine import transfer

    path = transfer.file_of(checkpoint)
    run = _described(path, transfer.read(path).get("args"), named).but(**changes)
    if split == "val":
        return path, run.but(holdout=0.0)
    if not run.holdout:
        raise Refusal("--split holdout: this run was trained without --holdout")
    return path, run


def _described(path: Path, args: Any, named: dict[str, Any]) -> Run:
    if isinstance(args, dict) and "model" in args:
        changed = _weightless(path, args["model"], named)
        size = {"img_size": named["img_size"], "stored_size": None} if "img_size" in named else {}
        if size and args.get("permute", "none") != "none":
            raise Refusal(f"{path} was trained on permuted {args['permute']}, which have no other size")
        # Weights of another scheme, or that began from a file which is gone, can be judged all the same.
        own = {key: args[key] for key in JUDGED if key in args} | size
        return make_run({**own, "model_kwargs": {**own.get("model_kwargs", {}), **changed}}, where=str(path))
    if {"model", "dataset"} <= named.keys():
        return make_run({**named, "model_kwargs": pairs(named.get("model_kwargs", []), "--model-kwargs")})
    raise Refusal(f"{path} is not the weights of a run of ours: say --model NAME --dataset NAME", CHECKPOINT)


def _weightless(path: Path, model: str, named: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the model that may differ from a file that says what it is: those on which no weight depends."""
    given = pairs(named.get("model_kwargs", []), "--model-kwargs")
    free = () if model.startswith("timm/") else read(model.partition("_")[0]).tables.get("WEIGHTLESS", ())
    others = [key for key in named if key not in ("model_kwargs", "img_size")]
    others += ["model_kwargs"] if not given.keys() <= {*free} else []
    if others:
        but = f", or keep to {', '.join(free)}" if free and others[0] == "model_kwargs" else ""
        raise Refusal(f"{path} says what it is; leave out --{others[0].replace('_', '-')}{but}")
    return given


def resized(path: Path, run: Run) -> dict[str, str]:
    """At which sizes weights are judged that were trained at another one, as cells of the row; {} otherwise."""
    from engine import transfer

    args = transfer.read(path).get("args")
    trained = args.get("img_size") if isinstance(args, dict) else None
    if trained is None or sizes.text(trained) == run.pixels:
        return {}
    return {"img_size": run.pixels, "trained_px": sizes.text(trained)}


def merging(path: Path, run: Run) -> dict[str, str]:
    """Whether weights that are judged with tokens merged were trained so, as a cell of the row; {} without merging."""
    if not run.model_kwargs.get("merge_r"):
        return {}
    from engine import transfer

    args = transfer.read(path).get("args")
    trained = args.get("model_kwargs", {}) if isinstance(args, dict) else {}
    ours = {key: value for key, value in run.model_kwargs.items() if key.startswith("merge_")}
    same = {key: value for key, value in trained.items() if key.startswith("merge_")} == ours
    before = f"merge_r={trained['merge_r']}" if trained.get("merge_r") else "whole tokens"
    return {"merging": "trained with it" if same else f"after training with {before}"}


def predict(
    path: Path, run: Run, how: How, views: int | Literal["all"] | None = None
) -> tuple["np.ndarray", "np.ndarray"]:
    """Log-probabilities (N, classes) and labels (N,); with `views`, of the mean over so many augmented views.

    Args:
        views: `all`: every shift of the run's crop, once.
    """
    import torch

    from engine import evaluate, transfer
    from engine.data import loaders, normalize
    from engine.models import create, pick_device
    from engine.step import make_autocast

    device = pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    _, loader, facts = loaders.make_loaders(run, how)
    if views == "all":
        loader = evaluate.make_shifts(run, loader)
        views = len(loader.views)
    elif views:
        loader = evaluate.make_views(run, how)
    prepare = normalize.make_prepare(run, facts, device)
    in_chans = len(prepare.mean)
    model = create(run, facts["num_classes"], in_chans).to(device)
    transfer.load_weights(path, run, model, facts["num_classes"], in_chans, new_head=False)
    return evaluate.predict(model, loader, prepare, make_autocast(run, device), views or 1)


def cost(run: Run, views: int | Literal["all"] | None, num_classes: int) -> dict[str, int]:
    """Views of an image and the MACs of all of them, as cells of the row; {} for the image alone."""
    if views is None:
        return {}
    from engine.cost.profile import profile
    from engine.data.augment.shifts import shifts

    if views == "all":
        views = len(shifts(run.img_size, run.crop_pad, run.crop_step, run.crop_fill))
    entry = lookup(run.dataset)
    data = {"img_size": run.img_size, "in_chans": entry.in_chans if entry else 3, "num_classes": num_classes}
    return {"tta": views, "macs": views * profile(run.model, **data, **run.final_kwargs)["macs"]}


def class_names(run: Run, how: How) -> list[str]:
    """The classes by name, in the order of their labels; by number where the .beton names none."""
    from engine.data import beton

    facts = beton.read_facts(beton.path_of(run.dataset, run.splits[-1], run.stored, how.data_dir))
    return facts.get("classes") or [str(label) for label in range(facts["num_classes"])]


def file_names(run: Run, raw_dir: Path | None) -> list[str] | None:
    """Names of the validation images in the order of the .beton; None without the folder they were written from."""
    if raw_dir is None:
        return None
    from engine.data.sets import read_raw

    try:
        return [str(name) for name, _ in read_raw(run.dataset, "val", raw_dir).samples]
    except (ValueError, AttributeError) as error:
        raise Refusal(f"--raw-dir {raw_dir}: {error}") from None
