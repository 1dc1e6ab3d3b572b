"""Public checkpoints under this zoo's names: unwrap, rename, read what the file implies, compare strictly, adapt.

What differs per family: `convert` of archs/formats/FAMILY.py renames each public layout (and reshapes; it drops
nothing), and `said`, where there is one, reads what a file keeps beside its weights; in the family's own file `implied`
reads from converted weights the arguments of `create` that they decide (and takes out what is no weight), `leftover`
names what a file may hold without use for the model, `afresh` what it may lack, and `resize`, where there is one,
carries them to another token grid. Weights of this zoo's own layout, and the files that a run exports, pass through.

A key that no rule knows keeps its name and is reported; what is left over is said; nothing is ever loaded in part.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archs.parts import zoo
from archs.parts.backbone import Grid, grid_of, pair
from archs.parts.weights import State, frame

# Where files keep their weights, the trained ones before their moving average, as the authors evaluate them.
WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")
# What DistributedDataParallel, torch.compile, Lightning and Flax's optimizers put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "params/", "opt/target/")
# Follow from the data set, so that a run may want others than the file has; `adapt` knows how.
ADAPTED = ("img_size", "num_classes", "in_chans")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights under this zoo's names, and the arguments of `create` that they imply, such as `num_classes`.

    `notes` says what of the file was left out, a line each.
    """

    state_dict: State
    implied: dict[str, Any]
    notes: tuple[str, ...] = ()


def convert_checkpoint(name: str, file: Mapping[str, Any], **overrides: Any) -> Checkpoint:
    """See `archs.convert_checkpoint`."""
    found = _read(name, file, overrides)
    _refuse_conflicts(name, found.implied, overrides)
    return found


def adapt(
    name: str, file: Mapping[str, Any], model: nn.Module, *, new_head: bool = True, **arguments: Any
) -> tuple[State, list[str]]:
    """The weights of a checkpoint for a fresh `model` of perhaps another image size, channels or classes.

    Args:
        model: `create(name, **arguments)`; another number of classes takes its head, as the family initialises it.
        new_head: whether the head may be replaced so.

    Returns:
        A state dict that `model` loads strictly, and what was changed, a line each.

    Raises:
        ValueError: as `convert_checkpoint`, or the weights cannot be carried over.
    """
    given = {key: value for key, value in arguments.items() if key not in ADAPTED}
    fresh = model.state_dict()
    found, wanted = _read(name, file, given, fresh), _with_defaults(name, arguments)
    state, notes = dict(found.state_dict), [*found.notes]

    def differs(key: str) -> bool:
        return key in found.implied and key in wanted and _plain(found.implied[key]) != _plain(wanted[key])

    if differs("img_size"):
        state = _resize(name, state, found.implied["img_size"], wanted)
        notes.append(f"image size {_size(found.implied['img_size'])} -> {_size(wanted['img_size'])} px")
    if differs("in_chans"):
        first = _stem(name, model)
        stems = [key for key in state if key.startswith(first) and state[key].shape != fresh[key].shape]
        state |= {key: _rechannel(name, state[key], fresh[key], found.implied["in_chans"]) for key in stems}
        notes.append(f"input channels {found.implied['in_chans']} -> {wanted['in_chans']}: the same for equal channels")
    if differs("num_classes"):
        change = f"{found.implied['num_classes']} -> {wanted['num_classes']} classes"
        if not new_head:
            raise ValueError(f"{name}: the weights are for {change.replace('->', 'classes, not')}")
        state |= {key: fresh[key] for key in fresh if key.startswith(_head(name, model))}
        notes.append(f"head initialised afresh, {change}")
    said = {key: value for key, value in found.implied.items() if key not in ADAPTED}
    _refuse_conflicts(name, {**said, **_implied(name, state, wanted)}, wanted)
    _compare(name, state, {key: tuple(value.shape) for key, value in fresh.items()})
    return state, notes


def unwrap(file: Mapping[str, Any]) -> State:
    """The state dict inside a loaded file, as tensors, without the prefixes of wrappers.

    Raises ValueError if there are no weights under a known key.
    """
    while inner := next((file[key] for key in WRAPPERS if isinstance(file.get(key), Mapping)), None):
        file = inner
    for key, value in file.items():
        if not isinstance(value, Tensor | np.ndarray):
            where = ", ".join(WRAPPERS)
            raise ValueError(f"no weights found: '{key}' is a {type(value).__name__}; looked under {where}")
    state = {str(key): torch.as_tensor(value) for key, value in file.items()}
    while state and (prefix := next((each for each in PREFIXES if all(key.startswith(each) for key in state)), None)):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


# --- the steps


def _read(
    name: str, file: Mapping[str, Any], overrides: Mapping[str, Any], fresh: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Convert, and compare with the model that `overrides` and the file together describe.

    Args:
        fresh: weights of a fresh model, for those that start afresh; without them a file must have them.
    """
    said, state = _said(name, file, overrides), unwrap(file)
    if not any(key.startswith(("stages.", "stem.0.proj.")) for key in state):
        state = _converted(name, state)
    implied = {**said, **_implied(name, state, _with_defaults(name, {**overrides, **said}))}
    added, begun = _afresh(name, state, {**overrides, **implied}, fresh or {})
    state, notes = _without_leftover(name, state, {**overrides, **implied})
    state, notes = state | added, notes + begun
    with torch.device("meta"):
        expected = zoo.create(name, **{**overrides, **implied}).state_dict()
    _compare(name, state, {key: tuple(value.shape) for key, value in expected.items()})
    return Checkpoint(state_dict=state, implied=implied, notes=notes)


def _formats(name: str) -> ModuleType | None:
    """How public files spell the family's weights, where there are any."""
    formats = f"archs.formats.{name.partition('_')[0]}"
    if name.startswith("timm/") or importlib.util.find_spec(formats) is None:
        return None
    return importlib.import_module(formats)


def _converted(name: str, state: State) -> State:
    """Under the family's own names, where it has public layouts."""
    return formats.convert(state) if (formats := _formats(name)) else state


def _said(name: str, file: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its model beside its weights: one exported by a run of ours, or as its authors do.

    A model that is to lack the mixing of more layers than the file does may start from it (`leftover`), not of others.
    """
    args = file.get("args")
    if not isinstance(args, Mapping) or "model" not in args:
        formats = _formats(name)
        return formats.said(file) if hasattr(formats, "said") else {}
    if args["model"] != name:
        raise ValueError(f"the file holds the weights of {args['model']}, not of {name}")
    weightless = getattr(_family(name), "WEIGHTLESS", ())
    kwargs = {key: value for key, value in args.get("model_kwargs", {}).items() if key not in weightless}
    if lost := kwargs.get("mlp_layers"):
        kwargs.setdefault("replacement", _with_defaults(name, {})["replacement"])
        if {*lost} < {*overrides.get("mlp_layers", ())}:
            del kwargs["mlp_layers"]
    size = args["img_size"]  # of an oblong image, such as 32x64
    return {"img_size": tuple(map(int, size.split("x"))) if isinstance(size, str) else size, **kwargs}


def _without_leftover(name: str, state: State, given: Mapping[str, Any]) -> tuple[State, tuple[str, ...]]:
    """The weights without what the model has no use for, and a note that says so."""
    family = _family(name)
    if not hasattr(family, "leftover"):
        return state, ()
    keys, why = family.leftover(state, _with_defaults(name, given))
    if not keys:
        return state, ()
    kept = {key: value for key, value in state.items() if key not in keys}
    return kept, (f"left out {len(keys)} tensors of the file ({_few(sorted(keys), 2)}): {why}",)


def _afresh(
    name: str, state: State, given: Mapping[str, Any], fresh: Mapping[str, Tensor]
) -> tuple[State, tuple[str, ...]]:
    """Weights of a fresh model that the file lacks, because what they belong to was not there, and a note."""
    family = _family(name)
    if not fresh or not hasattr(family, "afresh"):
        return {}, ()
    lacking = [key for key in fresh if key not in state]
    keys = sorted(family.afresh(lacking, state, _with_defaults(name, given)))
    if not keys:
        return {}, ()
    return {key: fresh[key] for key in keys}, (f"{len(keys)} tensors start afresh ({_few(keys, 2)})",)


def _implied(name: str, state: State, own: Mapping[str, Any]) -> dict[str, Any]:
    if not name.startswith("timm/"):
        family = _family(name)
        return family.implied(state, own) if hasattr(family, "implied") else frame(state, own, None)
    with torch.device("meta"):
        model = zoo.create(name, **own)
    head, stem = (
        next((state[f"{begin}weight"] for begin in part(name, model) if f"{begin}weight" in state), None)
        for part in (_head, _stem)
    )
    implied = {} if head is None else {"num_classes": len(head)}
    return implied if stem is None else {**implied, "in_chans": stem.shape[1]}


def _resize(name: str, state: State, img_size: Any, wanted: Mapping[str, Any]) -> State:
    family = _family(name)
    if not family.BIAS.grid_bound:
        return state
    if not hasattr(family, "resize"):
        raise ValueError(
            f"{name}: the weights belong to an image of {_size(img_size)} px, {_size(wanted['img_size'])} were asked "
            f"for, and weights bound to the places of an image cannot be carried over; use img_size {_size(img_size)}"
        )
    grids = (grid_of(size, wanted["patch_size"]) for size in (img_size, wanted["img_size"]))
    try:
        return family.resize(state, *grids)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _rechannel(name: str, weight: Tensor, like: Tensor, before: int) -> Tensor:
    """A stem's weight for grey images from one for colour, or back: equal channels give what they gave before."""
    axis = next(i for i in range(weight.ndim) if weight.shape[i] != like.shape[i])
    after = before * like.shape[axis] // weight.shape[axis]
    if 1 not in (before, after):
        raise ValueError(f"{name}: the weights are for {before} channels; only 1 can be made of them, not {after}")
    grey = weight.unflatten(axis, (before, -1)).sum(axis, keepdim=True) / after
    return grey.repeat_interleave(after, axis).flatten(axis, axis + 1)


def _compare(name: str, found: State, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one ValueError that counts what is missing, left over or of another shape, with up to 5 names each."""
    missing = [key for key in expected if key not in found]
    left = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {shape}"
        for key, shape in expected.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    problems = {"missing": missing, "left over": left, "of another shape": shapes}
    if any(problems.values()):
        said = [f"{len(names)} {problem} ({_few(names)})" for problem, names in problems.items() if names]
        raise ValueError(f"{name}: the weights do not fit the model: {'; '.join(said)}")


def _refuse_conflicts(name: str, implied: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in implied.items():
        if key in wanted and _plain(wanted[key]) != _plain(value):
            raise ValueError(
                f"{name}: the weights are those of {key}={_plain(value)}, not {_plain(wanted[key])}; "
                f"set {key}={_plain(value)}"
            )


def _with_defaults(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of `create`: the family's defaults, the variant's and the overrides."""
    if name.startswith("timm/"):
        return dict(overrides)
    parameters = inspect.signature(_family(name).build).parameters
    defaults = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
    return {**defaults, **zoo.arguments(name, **overrides)}


def _family(name: str) -> ModuleType | None:
    if name.startswith("timm/"):
        return None
    zoo.arguments(name)  # raises for a name that is not there
    return importlib.import_module(f"archs.{name.partition('_')[0]}")


def _head(name: str, model: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's parameters begin, of both where timm's model has two for distillation."""
    return _beginnings(model.default_cfg["classifier"]) if name.startswith("timm/") else ("head.",)


def _stem(name: str, model: nn.Module) -> tuple[str, ...]:
    """How the names of the first layer's parameters begin; timm's CrossViT has one for each of its sizes."""
    return _beginnings(model.default_cfg["first_conv"]) if name.startswith("timm/") else ("stem.",)


def _beginnings(named: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(f"{each}." for each in ([named] if isinstance(named, str) else named or ()))


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _plain(value: Any) -> Any:
    """Lists and tuples as lists, integral floats as ints, a square as one number: one spelling per value."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        values = [_plain(each) for each in value]
        return values[0] if len(values) == 2 and values[0] == values[1] else values
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _size(size: int | Grid) -> str:
    return " x ".join(map(str, pair(size))) if not isinstance(size, int) else str(size)
