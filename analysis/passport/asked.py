"""What a command asks for: what its word names, and whether its files are there, without torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import archs
from engine.data import beton
from engine.data.sets import DATASETS, lookup
from engine.errors import CHECKPOINT, DATA, Refusal
from engine.fields.sizes import Size
from engine.fields.values import unknown
from engine.folder import store
from engine.run import LAST, How

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
GIVEN = ("img_size", "num_classes", "in_chans")  # what a function may take


@dataclass(frozen=True)
class Asked:
    """What a command asks for, looked up but not yet loaded."""

    word: str
    kind: str
    """ "run", "function" or "model"."""
    folder: Path | None = None
    """Of a run."""
    weights: Path | None = None
    dataset: str | None = None
    img_size: Size | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    images: int = 1000
    """Of the validation images, at most; 0 for all."""

    @property
    def label(self) -> str:
        """What names its page and folder."""
        if self.folder:
            return self.folder.name
        word = (
            self.word
            if self.kind == "model"
            else f"{Path(self.word.rpartition(':')[0]).stem}-{self.word.rpartition(':')[2]}"
        )
        return re.sub(r"[^\w.-]+", "-", word)


def read(asked: Asked, how: How) -> Asked:
    """What is asked for, checked as far as no torch is needed; sizes and classes are those of the data set.

    Raises Refusal: an unknown model or data set, a file that is not there (CHECKPOINT, DATA), words that exclude
    each other.
    """
    if asked.kind == "run":
        given = [key for key in ("weights", "dataset", *GIVEN, "mean", "std", "model_kwargs") if getattr(asked, key)]
        if given:
            flag = {"dataset": "data"}.get(given[0], given[0]).replace("_", "-")
            raise Refusal(f"--{flag} does not go with a run, which has its own; leave it out")
        if not store.is_done(asked.folder):
            raise Refusal(f"{asked.folder} is no finished run; train it to its end first", CHECKPOINT)
        if not (asked.folder / LAST).is_file():
            raise Refusal(f"{asked.folder} has no {LAST}: its weights are not kept", CHECKPOINT)
        return asked
    if asked.kind == "function" and not Path(FUNCTION.fullmatch(asked.word)["file"]).is_file():
        raise Refusal(f"there is no file {FUNCTION.fullmatch(asked.word)['file']}")
    if asked.kind == "model" and not asked.word.startswith("timm/"):
        try:
            archs.arguments(asked.word, **asked.model_kwargs)
        except ValueError as error:
            hint = "" if "unknown model" not in str(error) else "; or timm/NAME, FILE.py:function, a run's folder"
            raise Refusal(f"{error}{hint}") from None
    if asked.weights is not None:
        path = asked.weights / LAST if asked.weights.is_dir() else asked.weights
        if not path.is_file():
            raise Refusal(f"--weights {path} does not exist", CHECKPOINT)
        asked = _but(asked, weights=path)
    if bool(asked.mean) != bool(asked.std) or len(asked.mean) != len(asked.std):
        raise Refusal("--mean and --std go together, a number per channel each")
    if asked.dataset is None:
        if asked.mean:
            raise Refusal("--mean and --std are of images; name these by --data")
        return asked
    return _of_data(asked, how)


def kind_of(word: str) -> tuple[str, Path | None]:
    """What a word names, and of a run its folder. Raises Refusal for a signature of no run."""
    if FUNCTION.fullmatch(word):
        return "function", None
    if (Path(word) / "args.yaml").is_file():
        return "run", Path(word)
    if re.fullmatch(r"[0-9a-f]{4,8}", word):
        from analysis.notebook import folder_of  # which needs pandas

        if (folder := folder_of(word)) is None:
            raise Refusal(f"no run '{word}' in {store.results_dir() / 'runs'}", DATA)
        return "run", folder
    if word.endswith(".py"):
        raise Refusal(f"{word} names no function of the file; write {word}:FUNCTION")
    if "/" in word and not word.startswith("timm/"):
        raise Refusal(f"{word} is no run's folder (it has no args.yaml), no FILE.py:function and no timm/NAME")
    return "model", None


def _of_data(asked: Asked, how: How) -> Asked:
    """With size, classes and channels of the data set."""
    try:
        entry = lookup(asked.dataset)
    except ValueError:
        raise Refusal(unknown("data set", asked.dataset, [*DATASETS, "imagefolder/NAME"])) from None
    stored = beton.stored_sizes(asked.dataset, "val", how.data_dir)
    size = asked.img_size or (entry.img_size if entry else stored[0] if stored else 32)
    facts = beton.check(beton.path_of(asked.dataset, "val", size, how.data_dir), asked.dataset, size)
    chans, classes = entry.in_chans if entry else len(facts["mean"]), facts["num_classes"]
    for key, own in (("num_classes", classes), ("in_chans", chans)):
        if (given := getattr(asked, key)) not in (None, own):
            raise Refusal(f"--{key.replace('_', '-')} {given}: {asked.dataset} has {own}; leave it out")
    if asked.mean and len(asked.mean) != chans:
        raise Refusal(f"--mean has {len(asked.mean)} numbers; {asked.dataset} has {chans} channels")
    return _but(asked, img_size=size, num_classes=classes, in_chans=chans)


def _but(asked: Asked, **changes: Any) -> Asked:
    return Asked(**{**vars(asked), **changes})
