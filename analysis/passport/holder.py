"""Whose passport it is: a module of the zoo, of timm, of a file or of a run, with its weights and its images."""

import functools
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import archs
from analysis.passport.asked import FUNCTION, GIVEN, Asked
from engine.data import beton
from engine.data.sets import lookup
from engine.errors import CHECKPOINT, Refusal, line_of
from engine.fields import sizes
from engine.fields.sizes import Size
from engine.fields.values import unknown
from engine.run import How, Run

if TYPE_CHECKING:
    from torch import nn

    from analysis.bias.probe import Subject


@dataclass(frozen=True)
class Holder:
    """A module that gives logits, and what is known of it.

    Args:
        make: the same module with fresh weights, on the default device.
        model: in evaluation mode, with its weights; on the CPU. Of a run with shuffled pixels what reads them shuffled.
        shape: of an image, (C, H, W).
        name, arguments: of `archs.create`; "" for a function of a file.
        trained: whose weights they are; "" for random ones.
        run: None but for a run.
        subject: the model and its images, as probes take them; None without images.
        shuffled: how a run shuffled the pixels before the module; "" for not.
        notes: what was changed of the weights.
    """

    asked: Asked
    make: "Callable[[], nn.Module]"
    model: "nn.Module"
    shape: tuple[int, int, int]
    num_classes: int
    patch_size: int | None
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    trained: str = ""
    run: Run | None = None
    subject: "Subject | None" = None
    shuffled: str = ""
    notes: Sequence[str] = ()

    @property
    def title(self) -> str:
        """How the page calls it."""
        if self.run is not None:
            return self.run.rung
        word = self.asked.word
        word = word if self.asked.kind == "model" else word[word.rfind("/") + 1 :]
        return " ".join([word, *(f"{key}={value}" for key, value in self.asked.model_kwargs.items())])


def open_holder(asked: Asked, how: How) -> Holder:
    """Build the module, load its weights, open its images, and see that it gives logits.

    Raises Refusal, in one line: what cannot be built, weights that do not fit (CHECKPOINT), data (DATA).
    """
    if asked.kind == "run":
        return _of_run(asked, how)
    shape = {key: getattr(asked, key) for key in GIVEN if getattr(asked, key) is not None}
    make = functools.partial(_create, asked.word, shape, asked.model_kwargs)
    if asked.kind == "function":
        make = functools.partial(_call, _function(asked), shape, asked.model_kwargs, asked.word)
    import torch

    torch.manual_seed(0)
    model = make().eval()
    size, chans = _image(asked, model)
    notes = _load(asked, model, size, chans) if asked.weights is not None else []
    classes = _classes(asked, model, (chans, *sizes.pair(size)))
    subject = _subject(asked, how, model, classes) if asked.dataset else None
    known = {"img_size": size, "num_classes": classes, "in_chans": chans, **asked.model_kwargs}
    name = asked.word if asked.kind == "model" else ""
    trained = str(asked.weights) if asked.weights else ""
    patch, shape = _patch_size(model, asked), (chans, *sizes.pair(size))
    return Holder(asked, make, model, shape, classes, patch, name, known, trained, subject=subject, notes=notes)


def _of_run(asked: Asked, how: How) -> Holder:
    from analysis.bias.probe import Rearranged
    from analysis.bias.probe_runs import Opened
    from engine import models

    opened = Opened(asked.folder, how)
    subject, run, chans = opened.subject(), opened.run, len(opened.mean)
    shuffled = isinstance(subject.model, Rearranged)
    inner = subject.model.model if shuffled else subject.model
    known = {"img_size": run.img_size, "num_classes": subject.num_classes, "in_chans": chans, **run.model_kwargs}
    return Holder(
        asked,
        functools.partial(models.create, run, subject.num_classes, chans),
        inner,
        (chans, *sizes.pair(run.img_size)),
        subject.num_classes,
        run.patch_size,
        run.model,
        known,
        f"run {asked.folder.name}",
        run,
        subject,
        run.permute if shuffled else "",
    )


# --- what is built


def _create(name: str, shape: dict[str, Any], arguments: dict[str, Any]) -> "nn.Module":
    try:
        return archs.create(name, **shape, **arguments)
    except Exception as error:  # other people's models raise whatever they like for what does not suit them
        line = line_of(error)
        raise Refusal(line if name in line else f"{name}: {line}") from None


def _function(asked: Asked) -> Callable[..., Any]:
    """The function that the word names. Raises Refusal for a file that cannot be run, or has no such function."""
    found = FUNCTION.fullmatch(asked.word)
    path = Path(found["file"])
    spec = importlib.util.spec_from_file_location(f"passport_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))  # for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it may raise anything
        raise Refusal(f"{path} cannot be run: {type(error).__name__}: {line_of(error)}") from None
    finally:
        sys.path.pop(0)
    function = getattr(module, found["function"], None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise Refusal(f"{path}: {unknown('function', found['function'], names or ['none'])}")
    return function


def _call(function: Callable[..., Any], shape: dict[str, Any], arguments: dict[str, Any], word: str) -> "nn.Module":
    """What the function gives, told of the size, classes and channels that it has parameters for."""
    from torch import nn

    takes = inspect.signature(function).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    given = {key: value for key, value in shape.items() if key in takes or anything} | arguments
    lacking = [
        name
        for name, each in takes.items()
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and name not in given
    ]
    if lacking:
        flag = lacking[0].replace("_", "-")
        hint = f"--{flag}, or --data" if lacking[0] in GIVEN else f"--model-kwargs {lacking[0]}=VALUE"
        raise Refusal(f"{word} takes '{lacking[0]}'; give {hint}")
    try:
        model = function(**given)
    except Exception as error:  # it may raise anything
        raise Refusal(f"{word}: {type(error).__name__}: {line_of(error)}") from None
    if not isinstance(model, nn.Module):
        raise Refusal(f"{word} gave a {type(model).__name__}, not an nn.Module")
    return model


def _image(asked: Asked, model: "nn.Module") -> tuple[Size, int]:
    """Size and channels of the images: as asked, else as the model itself says."""
    own = (getattr(model, "default_cfg", None) or {}).get("input_size") or getattr(model, "input_size", None)
    if own is None and asked.img_size is None:
        raise Refusal(f"{asked.word} does not say which images it takes; give --img-size or --data")
    size = asked.img_size or sizes.read(list(own[1:]))
    return size, asked.in_chans or (own[0] if own else 3)


def _classes(asked: Asked, model: "nn.Module", shape: tuple[int, int, int]) -> int:
    """As many as there are logits. Raises Refusal for a module that gives none, or others than the data have."""
    import torch

    taken = f"{shape[0]} x {shape[1]} x {shape[2]}"
    try:
        with torch.no_grad():  # what a module keeps of it may be wanted with gradients
            logits = model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    except Exception as error:  # it may raise anything
        raise Refusal(f"{asked.word} fails on images of {taken}: {line_of(error)}") from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise Refusal(f"{asked.word} gives no logits: {given} for two images, not (2, classes)")
    if asked.num_classes not in (None, logits.shape[1]):
        where = f"{asked.dataset} has" if asked.dataset else "asked for are"
        raise Refusal(f"{asked.word} gives {logits.shape[1]} logits; {where} {asked.num_classes} classes")
    return logits.shape[1]


def _load(asked: Asked, model: "nn.Module", size: Size, chans: int) -> list[str]:
    """The weights of the file into the model; what was changed of them, a line each.

    Raises Refusal (CHECKPOINT) for a file that does not fit.
    """
    from archs.parts import convert
    from engine.folder import weights

    try:
        file = weights.read(asked.weights)
        if asked.kind == "model":
            classes = asked.num_classes or getattr(model, "num_classes", None)
            data = {"img_size": size, "num_classes": classes, "in_chans": chans}
            state, notes = convert.adapt(asked.word, file, model, new_head=False, **data, **asked.model_kwargs)
        else:
            state, notes = convert.unwrap(file), []
            own = model.state_dict()
            lacks, more = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            if lacks or more:
                words = [f"lacks {len(lacks)} weights, the first {lacks[0]}"] if lacks else []
                words += [f"has {len(more)} that {asked.word} has not, the first {more[0]}"] if more else []
                raise ValueError(" and ".join(words))
            other = [key for key in own if own[key].shape != state[key].shape]
            if other:
                shapes = tuple(state[other[0]].shape), tuple(own[other[0]].shape)
                raise ValueError(f"{other[0]} is {shapes[0]}, of {asked.word} it is {shapes[1]}")
        model.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refusal(f"--weights {asked.weights}: {line_of(error)}", CHECKPOINT) from None
    return notes


def _subject(asked: Asked, how: How, model: "nn.Module", classes: int) -> "Subject":
    """The model before (a part of) the validation images of the data set, standardised."""
    from analysis.bias.probe import Subject
    from analysis.bias.probe_runs import Images
    from engine import models
    from engine.data.augment.pipeline import Augmentation
    from engine.data.loaders import FfcvLoader
    from engine.data.normalize import Normalize

    device, size = models.pick_device(how), asked.img_size
    path = beton.path_of(asked.dataset, "val", size, how.data_dir)
    facts, entry = beton.check(path, asked.dataset, size), lookup(asked.dataset)
    mean, std = (entry.mean, entry.std) if entry else (facts["mean"], facts["std"])
    if asked.mean:
        mean, std = ([255 * number for number in values] for values in (asked.mean, asked.std))
    loader = FfcvLoader(path, 250, Augmentation(size, tuple(mean), tuple(std)), workers=how.workers)
    if asked.images and asked.images < loader.num_samples:
        loader = loader.part(asked.images)
    images = Images(loader, Normalize(list(mean), list(std), device))
    side, patch = math.gcd(*sizes.pair(size)), _patch_size(model, asked)
    known = {"mean": list(mean), "std": list(std), "dataset": asked.dataset}
    return Subject(model.to(device).requires_grad_(False), images, side, classes, patch, **known)


def _patch_size(model: "nn.Module", asked: Asked) -> int | None:
    """Of the zoo what its arguments say, of timm its patch embedding; None where nothing says it."""
    if asked.kind == "model" and not asked.word.startswith("timm/"):
        found = {**archs.defaults(asked.word), **asked.model_kwargs}.get("patch_size")
    else:
        found = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        found = found[0] if isinstance(found, (tuple, list)) and len({*found}) == 1 else found
    return found if isinstance(found, int) else None
