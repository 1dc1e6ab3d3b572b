"""A run is a value with a signature: everything that decides a result, and nothing else.

`Run` is what decides the weights and the metrics; `How` is what must not (workers, device, logging, where the data
lie). Same run, same signature, same folder: a run is never trained twice by accident, and repeating a command resumes
it. Field names are timm's flags. Importing this imports neither torch nor timm.
"""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

import archs
from engine.data.augment.policy import FORMS, canonical
from engine.data.sets import DATASETS, SPLITS, lookup
from engine.errors import CHECKPOINT, USAGE, Refusal
from engine.fields import dilution, sizes, softness, values
from engine.fields.effects import OPTIMIZERS, fault
from engine.fields.how import DATA_DIR as DATA_DIR
from engine.fields.how import Count, How
from engine.fields.mistakes import Fields
from engine.fields.sizes import Pixels, Size
from engine.fields.values import unknown
from engine.pruning import criteria

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]

# Version of what a signature stands for. Raise it, and only then change the pinned values of tests/engine/test_run.py,
# when a change makes any run compute something else: a default, a family's VARIANTS or build, the order of the images,
# the loss, a schedule. Runs of two schemes are never resumed into each other nor compared. A new field needs no new
# scheme where its default means "as before".
SCHEME = 2
LAST = "last.pth.tar"  # the weights that a run's folder stands for
BEST = "model_best.pth.tar"


class Run(Fields):
    """One training run, frozen and validated; types are canonical, so that 50 and 50.0 are the same run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scheme: int = Field(SCHEME, description="version of what a signature stands for; kept with the run")
    model: str = Field("mixer_nano", description="family_variant, or timm/NAME; scripts/list_models.py lists them")
    model_kwargs: dict[str, Value] = Field({}, description="arguments of the family's build, as depth=8 dim=256")
    dataset: str = Field("digits", description=f"{', '.join(DATASETS)}, or imagefolder/NAME")
    img_size: Pixels | None = Field(
        None, description="pixels, as 32 or 32x64 (height x width); default: the data's own"
    )
    stored_size: Pixels | None = Field(
        None, description="pixels of the stored images, larger than img_size and shrunk to it (default: img_size)"
    )
    train_samples: Count | None = Field(None, description="train on the first N of a fixed shuffle (default: all)")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="initialisation, data order and augmentation")
    epochs: Count = Field(30, description="passes over the training set")
    batch_size: Count = Field(128, description="images per step")
    grad_accum_steps: Count = Field(1, description="batches whose gradients are averaged into one step")
    opt: Literal["adamw", "adam", "nadamw", "sgd", "momentum", "rmsprop", "lamb", "lion", "muon"] = Field(
        "adamw", description="timm's optimizer of that name (sgd is Nesterov, momentum is not; muon: AdamW for vectors)"
    )
    lr: Positive = Field(1e-3, description="peak learning rate")
    momentum: Fraction = Field(0.9, description="for sgd, momentum, rmsprop, muon")
    opt_eps: Positive | None = Field(None, description="default: timm's")
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of lr a layer from the head"
    )
    opt_betas: tuple[Fraction, Fraction] | None = Field(
        None, description="for adam's kin, lamb, lion, muon; default: timm's"
    )
    weight_decay: NonNegative = Field(0.05, description="not applied to biases, norms and other vectors")
    clip_grad: NonNegative = Field(0.0, description="largest gradient norm; 0 is off")
    sched: Literal["cosine", "constant", "linear", "step", "triangular"] = Field(
        "cosine", description="learning rate after warm-up, by the step (triangular: ConvMixer's)"
    )
    decay_epochs: Positive = Field(30.0, description="for step: epochs between two drops")
    decay_rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="for step: factor of each drop")
    cooldown_epochs: Annotated[int, Field(ge=0)] = Field(0, description="of the epochs, the last ones at min_lr")
    warmup_epochs: NonNegative = Field(0.0, description="linear warm-up from warmup_lr; may be a part of an epoch")
    warmup_lr: NonNegative = Field(0.0, description="learning rate at step 0 of the warm-up")
    min_lr: NonNegative = Field(0.0, description="learning rate at the end of cosine or linear")
    bce_loss: bool = Field(False, description="binary cross-entropy per class instead of softmax cross-entropy")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="label smoothing")
    mixup: NonNegative = Field(0.0, description="mixup alpha; 0 is off")
    cutmix: NonNegative = Field(0.0, description="cutmix alpha; 0 is off")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="stochastic depth")
    scale: tuple[Fraction, Fraction] | None = Field(None, description="area of a random resized crop, such as 0.08 1")
    ratio: tuple[Positive, Positive] = Field((0.75, 4 / 3), description="its aspect ratios")
    aa: str | None = Field(None, description=f"a policy: {FORMS}")
    color_jitter: Fraction = Field(0.0, description="brightness, contrast and saturation, each by up to this share")
    reprob: Fraction = Field(0.0, description="probability of erasing a random rectangle")
    remode: Literal["const", "pixel"] = Field("const", description="erase with the mean, or with random pixels")
    crop_pad: Annotated[int, Field(ge=0)] = Field(0, description="pixels of padding before a random crop")
    crop_fill: Literal["zeros", "wrap"] = Field(
        "zeros", description="what is there: black, or the other side of the image; with wrap half a side is any shift"
    )
    crop_step: Count = Field(1, description="pixels between two such crops: the patch's side shifts by whole patches")
    hflip: Fraction = Field(0.0, description="probability of a horizontal flip")
    aug_repeats: Annotated[int, Field(ge=0)] = Field(
        0, description="times that an image comes in an epoch, augmented anew, instead of others (0 and 1 are off)"
    )
    permute: Literal["none", "pixels", "patches", "pixels_first"] = Field(
        "none",
        description="after augmentation, one fixed shuffle of the places in all images: of pixels; or of the model's "
        "patches, and of the pixels inside them all alike; pixels_first: of pixels, before augmentation",
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the training images, chosen by a hash of the index, to validate on instead of val"
    )
    model_ema: bool = Field(False, description="evaluate an exponential moving average of the weights")
    model_ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="its decay per step")
    model_ema_warmup: bool = Field(False, description="raise the decay from 0, as timm does")
    dilute_layers: Annotated[str | None, BeforeValidator(dilution.canonical)] = Field(
        None, description="train the attention of these layers of a deit away: 0,2,4, or in groups one by one: 0,2/4,6"
    )
    dilute_epochs: Positive | None = Field(None, description="epochs over which a group goes (published: 299 of 400)")
    dilute_sched: Literal["linear", "cosine"] = Field("linear", description="how its share falls from 1 to 0")
    dilute_by: Literal["epoch", "step"] = Field("epoch", description="how often its share changes")
    prune_by: str | None = Field(
        None, description=f"zero weights or units of the model it starts from, for good: {', '.join(criteria.names())}"
    )
    prune_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the weights of each unit (of the units of each layer) that is zero"
    )
    prune_rewind: bool = Field(
        False, description="only which are zero comes from initial_checkpoint: train anew from the seed's own weights"
    )
    strictness_to: Fraction | None = Field(
        None, description="move the strictness of a lattice with mixer=dial there: 1 its kernel, 0 a full matrix"
    )
    strictness_epochs: Positive | None = Field(None, description="epochs that it takes, from the start, by the step")
    strictness_sched: Literal["linear", "cosine"] = Field("linear", description="how it goes there")
    penalty: Literal["beta_lasso", "distance", "toeplitz", "mask"] | None = Field(
        None, description="on matrices over the tokens and flat first layers: few weights, near ones, those of a "
        "convolution, those of a window"
    )  # fmt: skip
    penalty_weight: Positive | None = Field(None, description="its share of the loss; of beta_lasso, lambda")
    penalty_beta: NonNegative = Field(50.0, description="beta_lasso zeroes weights below beta * lambda after each step")
    penalty_kernel_size: Count | None = Field(None, description="side of the window; toeplitz takes none, too")
    penalty_stride: Count = Field(1, description="first layer's units stand at every Nth pixel, for toeplitz and mask")
    distil_epochs: Positive | None = Field(None, description="first epochs: mlp_layers learn what they gave before")
    best_from: Annotated[int, Field(ge=0)] | None = Field(
        None, description="first epoch, from 0, that may be the best one (default: 0, or where what is annealed ends)"
    )
    mode: Literal["full", "linear"] = Field("full", description="train all of the model, or its head alone")
    body_lr_scale: Fraction = Field(1.0, description="learning rate of all but the head, as a share of lr")
    initial_checkpoint: str | None = Field(
        None, description="start from these weights: .pth, .npz, .safetensors of any public layout, or a run's folder"
    )
    initial_identity: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{16}|run:[0-9a-f]{8})$")] | None = Field(
        None, description="what initial_checkpoint is, wherever it lies: found out when the run is first described"
    )
    amp: bool = Field(False, description="autocast to amp_dtype")
    amp_dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="bfloat16 is fast on AVX512-BF16, too")

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in what the table of data sets says, drop arguments that repeat the variant's own, unify numbers."""
        given = dict(given)
        model = str(given.get("model", "mixer_nano"))
        kwargs = given.get("model_kwargs") or {}
        if not isinstance(kwargs, dict):
            raise ValueError(f"model_kwargs must be key: value pairs, not {kwargs!r}")
        kwargs = archs.fitted(model, {key: _number(value) for key, value in kwargs.items()})
        for key in ("img_size", "num_classes", "in_chans", "drop_path"):
            if key in kwargs:
                raise ValueError(f"model_kwargs may not set '{key}': it follows from dataset, img_size and drop_path")
        if not model.startswith("timm/"):  # of a model of timm nobody knows the defaults without importing it
            archs.arguments(model, **kwargs)  # raises for a name that is not there
            own = archs.defaults(model)
            kwargs = {key: value for key, value in kwargs.items() if key not in own or _number(own[key]) != value}
        given["model_kwargs"] = dict(sorted(kwargs.items()))
        dataset = lookup(str(given.get("dataset", "digits")))
        if given.get("img_size") is None:
            if dataset is None:
                raise ValueError("an imagefolder needs an img_size: the one its .beton was written with")
            given["img_size"] = dataset.img_size
        if given.get("aa") is not None:
            given["aa"] = canonical(str(given["aa"]))  # raises for a spelling that is not known
        path = given.get("initial_checkpoint")
        if path is not None and given.get("initial_identity") is None:
            given["initial_identity"] = identify(str(path))
            given["initial_checkpoint"] = str(Path(path).expanduser().absolute())
        return given

    @model_validator(mode="after")
    def _consistent(self) -> "Run":
        if self.scheme != SCHEME:
            raise ValueError(
                f"scheme {self.scheme}: this version trains by scheme {SCHEME}; take the one that wrote it"
            )
        own = OPTIMIZERS[self.opt]
        same = {"stored_size": self.img_size, "opt_betas": own.betas, "opt_eps": own.eps}
        for key, value in same.items():  # what would be taken anyway has one spelling
            if getattr(self, key) == value:
                self.__dict__[key] = None
        if self.aug_repeats == 1:
            self.__dict__["aug_repeats"] = 0
        if self.prune_by is not None and self.prune_by not in criteria.names():
            raise ValueError(unknown("prune_by", self.prune_by, criteria.names()))
        if line := fault(self, {key: field.default for key, field in Run.model_fields.items()}):
            raise ValueError(line)
        if self.drop_path and not self.model.startswith("timm/"):
            archs.arguments(self.model, drop_path=self.drop_path)  # a flag that the model cannot use is an error
        loses = self.dilute_layers is not None or self.distil_epochs is not None
        if line := dilution.conflict(self, self.arguments if loses else {}):
            raise ValueError(line)
        if line := softness.conflict(self, {} if self.strictness_to is None else self.arguments):
            raise ValueError(line)
        if self.best_from == softness.settled_from(self):
            self.__dict__["best_from"] = None
        if self.permute == "patches" and not self.patch_size:
            raise ValueError(f"permute patches needs a model with patches, and {self.model} has none; permute pixels")
        return self

    def record(self) -> dict[str, Any]:
        """All fields as plain values, in the order of declaration."""
        return self.model_dump(mode="json")

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What is hashed: the scheme and what differs from the defaults; weights to start from by what they are."""
        fields = type(self).model_fields
        differing = [key for key in fields if getattr(self, key) != fields[key].default and key != "initial_checkpoint"]
        record = self.record()
        return {"scheme": self.scheme, **{key: _number(record[key]) for key in differing}}

    @functools.cached_property
    def signature(self) -> str:
        """Eight hex digits of the SHA-256 of the content as canonical JSON; pinned by a golden test."""
        text = json.dumps(self.content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.signature)

    @property
    def name(self) -> str:
        """Folder name: signature, model and seed, for example `3f9c1ab2-mixer_nano-s0`."""
        return f"{self.signature}-{self.model.replace('/', '-')}-s{self.seed}"

    @property
    def rung(self) -> str:
        """What is compared: the model that it ends with and its arguments, without the seed and the recipe."""
        # Of a dial what it starts with: two that end alike would be one rung, and no field would tell them apart.
        kwargs = self.model_kwargs if self.dilute_layers is None else self.final_kwargs
        return " ".join([self.model, *(f"{key}={value}" for key, value in kwargs.items())])

    @property
    def final_kwargs(self) -> dict[str, Any]:
        """Arguments of the model that it ends with: without attention that it dilutes, or a kernel that was a dial.
        They decide what that costs."""
        if self.dilute_layers is not None:
            return dilution.final_kwargs(self, self.arguments)
        dial = self.model_kwargs.get("mixer") == softness.DIAL
        return softness.final_kwargs(self, self.arguments, archs.defaults(self.model)) if dial else self.model_kwargs

    @property
    def ended(self) -> "Run":
        """The same run with the model that it leaves, as weights of a finished run want it."""
        if self.dilute_layers is None and self.final_kwargs == self.model_kwargs:
            return self
        fields = (*dilution.FIELDS, *softness.FIELDS, "best_from")
        usual = {key: type(self).model_fields[key].default for key in fields}
        return self.but(model_kwargs=self.final_kwargs, **usual)

    @property
    def arguments(self) -> dict[str, Any]:
        """All that the model's `build` takes, with their values; {} for a model of timm."""
        return {} if self.model.startswith("timm/") else {**archs.defaults(self.model), **self.model_kwargs}

    @property
    def patch_size(self) -> int | None:
        """Side of the model's patches in pixels; None where it has none, or is not square, or is timm's."""
        size = self.arguments.get("patch_size")
        return size if isinstance(size, int) else None

    @property
    def pixels(self) -> str:
        """Its size of image as text, `32` or `32x64`."""
        return sizes.text(self.img_size)

    @property
    def stored(self) -> Size:
        """Pixels of the stored images that it reads."""
        return self.stored_size or self.img_size

    @property
    def splits(self) -> tuple[str, ...]:
        """The files that it reads: with a holdout the training file alone."""
        return SPLITS[:1] if self.holdout else SPLITS

    def but(self, **changes: Any) -> "Run":
        """A validated copy with some fields changed; other weights to start from are looked at anew."""
        record = self.record()
        if "initial_checkpoint" in changes:
            del record["initial_identity"]
        return make_run({**record, **changes})


def make_run(fields: dict[str, Any], where: str = "") -> Run:
    """Validate fields into a Run. Raises Refusal with one line that names the field and, for a misspelling, ours."""
    return _make(Run, fields, where)


def make_how(fields: dict[str, Any], where: str = "") -> How:
    """Validate fields into a How; raises Refusal as `make_run`."""
    return _make(How, fields, where)


def _make(kind: type[Fields], fields: dict[str, Any], where: str) -> Any:
    try:
        return kind(**fields)
    except Refusal as refusal:
        prefix = f"{where}: " if where and refusal.code == USAGE else ""
        raise Refusal(prefix + str(refusal), refusal.code) from None


def identify(path: str) -> str:
    """What weights are, wherever they lie: `run:SIGNATURE` for a run's folder, else `sha256:` and 16 hex digits.

    A run's folder may still be planned; its name then tells the signature. Raises Refusal (CHECKPOINT) where there is
    no such file.
    """
    place = Path(path).expanduser()
    folder = place.parent if place.name == LAST else place
    args = folder / "args.yaml"
    if args.is_file() and (fields := read_yaml(args)).get("scheme") == SCHEME:
        return f"run:{make_run(fields, str(args)).signature}"
    file = place / LAST if place.is_dir() else place
    planned = re.fullmatch(r"([0-9a-f]{8})-.+-s\d+", folder.name)
    if planned and not file.exists() and not args.is_file():
        return f"run:{planned[1]}"
    try:
        about = file.stat()
        return f"sha256:{_sha256(str(file.absolute()), about.st_ino, about.st_size, about.st_mtime_ns)[:16]}"
    except OSError as error:
        word = "does not exist" if isinstance(error, FileNotFoundError) else f": {error.strerror}"
        raise Refusal(f"initial_checkpoint {file} {word}", CHECKPOINT) from None


@functools.lru_cache(maxsize=64)
def _sha256(path: str, *state: int) -> str:
    """Of a file in this state (inode, bytes, time of the last change), so that a sweep reads it once."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path) -> dict[str, Any]:
    """Fields of a Run or How from a YAML file, read as engine/fields/values.py reads all of them.

    Raises Refusal naming file, line and nearest key.
    """
    fields, lines = values.read(path)
    known = [*Run.model_fields, *How.model_fields]
    for key in fields:
        if key not in known:
            line = f" line {lines[key]}" if key in lines else ""
            raise Refusal(f"{path}{line}: {unknown('key', str(key), known)}")
    return fields


def _number(value: Any) -> Any:
    """An integral float as int, a tuple as list, recursively: one spelling per value."""
    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
