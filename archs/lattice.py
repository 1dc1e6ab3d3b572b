"""The lattice: one frame with one hole in it, for a token mixer, so that two models can differ in one thing.

A mixer is one file, archs/mixing/NAME.py:

    archs.create("lattice_s", mixer="depthwise", kernel_size=3)

`archs.difference(a, b)` says what two of its models differ in. Three frames:

metaformer  x <- x + Mix(LN(x)), x <- x + W2 gelu(W1 LN(x) + b1) + b2; then LN, mean over the tokens, linear head
resmlp      affine maps in place of the three norms, LayerScale 0.1 behind each branch
convmixer   x <- x + BN(gelu(Mix(x) + b)), x <- BN(gelu(W x + b')); BN(gelu(.)) behind the stem, no norm at the end

A norm is over the channels of one token (of BN, over all tokens of a batch), or every mixer would read the whole map.
Mixers have no bias: one per channel is absorbed by those of the frame, one per token would be a position embedding.

Start: tokens of normed images and every branch of the metaformer's have the mean square 1 and 1 / (2 depth), whatever
the mixer; in the other frames a mixer puts out the mean square 1, as LayerScale or BN is the scale. All weights are
normal. Each part draws from a generator of its own, derived from one number of torch's, so that the frame's weights
are bit for bit the same for all mixers.

With frame `resmlp` and mixer `dense` it is not ResMLP, whose tokens have biases and whose stem starts otherwise; the
published families keep their own files.
"""

import hashlib
import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from archs.ingredients import declared
from archs.ingredients.mixer import GELU_SQUARE, Mixer, Start
from archs.parts import weights
from archs.parts.backbone import Backbone, Grid, grid_of, pair
from archs.parts.bias import Bias
from archs.parts.family import read
from archs.parts.layers import Mlp, OverMap, Residual, patches
from archs.parts.relabeling import Relabeling, along, on_stem
from archs.parts.weights import State
from archs.resmlp import Affine

SOURCE = "ours: frames of arXiv 2111.11418, 2105.03404 and 2201.09792; no published configuration"
BIAS = Bias(
    stem="shared", receptive_field="global", permutation_equivariant=False, shift_equivariant=False, grid_bound=True
)
SYMMETRY = ("within", "patches")
MIXER = "mixer"
RATIO = "mlp_ratio"
VARIANTS = {
    "nano": {"img_size": 8, "num_classes": 10, "in_chans": 1, "patch_size": 2, "dim": 32, "depth": 3},
    "s": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 64, "depth": 4},
    "1m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 144, "depth": 6},
    "5m": {"img_size": 32, "num_classes": 10, "patch_size": 4, "dim": 280, "depth": 8},
}
EXPECTED = {
    "nano": {"params": 26_762, "macs": 420_160},
    "s": {"params": 153_674, "macs": 9_634_432},
    "1m": {"params": 1_036_474, "macs": 67_683_744},
    "5m": {"params": 5_087_618, "macs": 331_164_400},
}
EXPECTED_WITH = {  # of the demo, so that its plan needs no torch
    "nano mixer=none": {"params": 25_994, "macs": 395_584},
    "nano mixer=banded": {"params": 26_294, "macs": 420_160},
    "nano mixer=toeplitz": {"params": 26_141, "macs": 420_160},
    "nano mixer=kernel": {"params": 26_021, "macs": 420_160},
    "nano mixer=depthwise": {"params": 26_858, "macs": 409_408},
}

Norm = partial(nn.LayerNorm, eps=1e-6)
MixerName = str  # a file of archs/mixing/
Frame = Literal["metaformer", "resmlp", "convmixer"]
StemKind = Literal["shared", "unshared", "pixels"]
Position = Literal["none", "learned"]
KNOWN = {
    "frame": ("metaformer", "resmlp", "convmixer"),
    "stem": ("shared", "unshared", "pixels"),
    "position": ("none", "learned"),
}


class Stem(nn.Module):
    """Image BCHW -> tokens BHWC by a linear map of each patch, with one bias per channel, whoever shares the weights.

    Args:
        kind: one map for all patches, one for each, or one from all pixels to all tokens.
        act_norm: of frame convmixer.
    """

    def __init__(
        self, grid: Grid, patch_size: Grid, dim: int, in_chans: int, kind: StemKind, position: Position, act_norm: bool
    ) -> None:
        super().__init__()
        self.grid, self.patch_size, self.kind = grid, patch_size, kind
        (h, w), num_pixels = grid, in_chans * patch_size[0] * patch_size[1]
        shapes = {
            "shared": (dim, num_pixels),
            "unshared": (h * w, dim, num_pixels),
            "pixels": (h * w * dim, h * w * num_pixels),
        }
        self.weight = nn.Parameter(torch.empty(shapes[kind]))
        self.bias = nn.Parameter(torch.empty(dim))
        self.act_norm = _act_norm(dim) if act_norm else nn.Identity()
        self.pos_embed = nn.Parameter(torch.empty(h * w, dim)) if position == "learned" else None

    @property
    def placed(self) -> bool:
        """Whether its units stand on tokens and read all pixels; those of one token stand nowhere, of either kind."""
        return self.kind == "pixels" and self.grid != (1, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.kind == "pixels":
            x_BHWC = nn.functional.linear(x_BCHW.flatten(1), self.weight).unflatten(1, (*self.grid, -1))
        elif self.kind == "unshared":
            x_NBP = patches(x_BCHW, self.patch_size).flatten(1, 2).transpose(0, 1)
            x_BHWC = torch.bmm(x_NBP, self.weight.transpose(1, 2)).transpose(0, 1).unflatten(1, self.grid)
        else:
            x_BHWC = nn.functional.linear(patches(x_BCHW, self.patch_size), self.weight)
        x_BHWC = self.act_norm(x_BHWC + self.bias)
        return x_BHWC if self.pos_embed is None else x_BHWC + self.pos_embed.unflatten(0, self.grid)


class ChannelBias(nn.Module):
    """One bias per channel: of the convmixer's frame, whose activation comes behind it, and not of the mixer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Lattice(Backbone):
    """A Backbone that spares position embeddings and tables of relative positions from weight decay."""

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers spare."""
        tables = {f"{key}.{name}" for key, module in _mixers(self).items() for name in module.spared()}
        return tables | ({"stem.pos_embed"} if self.stem.pos_embed is not None else set())


DEFAULTS = read("lattice").defaults


def _act_norm(dim: int) -> nn.Module:
    return nn.Sequential(nn.GELU(), OverMap(nn.BatchNorm2d(dim)))


def _mixers(model: nn.Module) -> dict[str, Mixer]:
    return {key: module for key, module in model.named_modules() if isinstance(module, Mixer)}


def block(dim: int, grid: Grid, mixer: Mixer, frame: Frame = "metaformer", mlp_ratio: float = 4.0) -> nn.Module:
    """One layer of a frame around a mixer for this width and grid."""
    if frame == "convmixer":
        places = nn.Sequential(mixer, ChannelBias(dim), *_act_norm(dim))
        return nn.Sequential(Residual(nn.Identity(), places), nn.Sequential(nn.Linear(dim, dim), *_act_norm(dim)))
    norm, scale = (Norm, nn.Identity) if frame == "metaformer" else (Affine, partial(LayerScale, dim, 0.1))
    mlp = Mlp(dim, int(mlp_ratio * dim))
    return nn.Sequential(Residual(norm(dim), mixer, scale=scale()), Residual(norm(dim), mlp, scale=scale()))


def build(
    *,
    img_size: int | Grid,
    num_classes: int,
    patch_size: int | Grid,
    dim: int,
    depth: int,
    in_chans: int = 3,
    mixer: MixerName = "dense",
    frame: Frame = "metaformer",
    stem: StemKind = "shared",
    position: Position = "none",
    mlp_ratio: float = 4.0,
    kernel_size: int = 3,
    hidden: int = 32,
    groups: int = 1,
    num_heads: int = 4,
    wrap: bool = False,
    scrambled: bool = False,
    frozen: bool = False,
    strictness: float = 0.5,
    gated: bool = False,
    gain: float = 1.0,
    storage_exponent: float = 0.5,
    correlation_floor: float = 0.19,
    correlation_length: float = 1.1,
) -> Lattice:
    """From `kernel_size` to `gated` are the mixer's; one that it has not is refused.

    Args:
        hidden: tokens between the two maps of `two` and `token_mlp`.
        groups: of channels, each with weights of its own. num_heads: likewise, of the projected mixers.
        wrap: displacements go around the border; else zeros are beyond it.
        scrambled: the tokens stand in one random order, the same in all blocks.
        strictness: of `dial`, from 0, a full matrix, to 1, its kernel. gated: each layer learns it, from there on.
        gain: times the start's g0. storage_exponent, correlation_*: of archs/ingredients/mixer.py.
    """
    given = dict(locals())
    number = _number()  # before layers are made, which draw their defaults
    for key, known in KNOWN.items():
        if given[key] not in known:
            raise ValueError(f"{key} '{given[key]}' is unknown; known: {', '.join(known)}")
    if frame == "convmixer" and mlp_ratio != 4.0:
        raise ValueError("frame convmixer has no mlp_ratio: its channels meet in one matrix of dim x dim")
    grid, patch = grid_of(img_size, patch_size), pair(patch_size)
    blocks = [block(dim, grid, _mixer(given), frame, mlp_ratio) for _ in range(depth)]
    tokens = Stem(grid, patch, dim, in_chans, stem, position, act_norm=frame == "convmixer")
    norm = {"metaformer": Norm, "resmlp": Affine, "convmixer": nn.Identity}[frame](dim)
    return init(Lattice(tokens, [nn.Sequential(*blocks)], norm, nn.Linear(dim, num_classes)), number)


def _mixer(given: Mapping[str, Any]) -> Mixer:
    """The mixer of one block, without a start."""
    own = declared.read(given["mixer"])
    changed = {key for key in declared.of_mixers() if given[key] != DEFAULTS[key]}
    declared.refuse(own.name, dict.fromkeys(changed))
    module = importlib.import_module(f"archs.mixing.{own.name}").Mixing
    g0 = given["gain"] * ((2 * given["depth"]) ** -0.5 if given["frame"] == "metaformer" else 1.0)
    start = Start(
        g0=g0,
        exponent=given["storage_exponent"],
        floor=given["correlation_floor"],
        length=given["correlation_length"],
    )
    grid = grid_of(given["img_size"], given["patch_size"])
    mixer = module(given["dim"], grid, start, **{key: given[key] for key in own.arguments})
    if given["scrambled"]:
        mixer.scramble()
    if given["frozen"]:
        mixer.freeze()
    return mixer


@torch.no_grad()
def init(model: Lattice, number: int | None = None) -> Lattice:
    """Normal weights, zero biases, mixers by the start's rule; all from `number`, or a fresh one."""
    number = _number() if number is None else number
    if next(model.parameters()).is_meta:
        return model

    def normal(value: Tensor, deviation: float, *part: object) -> None:
        drawn = torch.randn(value.shape, generator=_generator(number, *part), device="cpu")
        value.copy_(deviation * drawn)

    depth, stem = len(model.blocks()), model.stem
    for key, value in model.named_parameters():
        if key.endswith("bias"):
            value.zero_()
    normal(stem.weight, stem.weight.shape[-1] ** -0.5, "stem")
    if stem.pos_embed is not None:
        normal(stem.pos_embed, 0.02, "position")
    normal(model.head.weight, 0.02, "head")
    order = torch.randperm(stem.grid[0] * stem.grid[1], generator=_generator(number, "order"), device="cpu")
    for i, each in enumerate(model.blocks()):
        (mixer,) = _mixers(each).values()
        mixer.draw(_generator(number, "mixer", i), order)
        mlp = each[1].branch if isinstance(each[1], Residual) else None
        if mlp is None:
            normal(each[1][0].weight, each[1][0].in_features ** -0.5, "channels", i)
            continue
        one, two = mlp.fc1.in_features**-0.5, (2 * depth * GELU_SQUARE * mlp.fc2.in_features) ** -0.5
        deviations = (one, two) if isinstance(each[0].norm, nn.LayerNorm) else (0.02, 0.02)
        for layer, deviation in zip((mlp.fc1, mlp.fc2), deviations, strict=True):
            normal(layer.weight, deviation, "fc1" if layer is mlp.fc1 else "fc2", i)
    return model


def _number() -> int:
    """The one number that a model takes from torch's generator."""
    return torch.randint(2**62, (), device="cpu").item()


def _generator(number: int, *part: object) -> torch.Generator:
    """Of one part of the model, so that no part's numbers depend on how many another draws."""
    text = "/".join(map(str, (number, *part)))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator("cpu").manual_seed(seed)


def nominal_macs(macs: int, given: Mapping[str, Any]) -> int:
    """`macs`, as counted for the arguments `given` of `build`, without products with weights that are always zero."""
    given = {**DEFAULTS, **given}
    with torch.device("meta"):
        nominal, executed = _mixer(given).macs()
    return macs - given["depth"] * (executed - nominal)


def implied(state_dict: State, own: Mapping[str, Any]) -> dict[str, Any]:
    """The image's size where positions, an order or a matrix over the tokens tells their number."""
    mixers = {key.rpartition(".")[2]: value for key, value in state_dict.items() if ".0.branch." in key}
    tokens = None
    if "stem.pos_embed" in state_dict:
        tokens = len(state_dict["stem.pos_embed"])
    elif "order" in mixers:
        tokens = len(mixers["order"])
    elif own["mixer"] == "gate" or own["mixer"].startswith("dense"):
        tokens = mixers["weight"].shape[-1] if "weight" in mixers else None
    elif own["mixer"] == "dial":
        tokens = mixers["rest"].shape[-1] if "rest" in mixers else None
    return weights.frame(state_dict, own, tokens, "stem.weight")


def relabel(state_dict: State, relabeling: Relabeling, given: Mapping[str, Any]) -> State | None:
    """Each part follows: the stem, positions, and the mixers as `follow` of each says.

    Args:
        given: arguments of `build`; weights do not tell all of them.
    """
    given = {**DEFAULTS, **given}
    kind, weight = given["stem"], state_dict["stem.weight"]
    if kind == "pixels":
        return {**state_dict, "stem.weight": relabeling.follow(weight)}
    if kind == "shared":
        state = on_stem(state_dict, relabeling, "stem.weight")
    elif relabeling.tokens is None:
        state = None
    else:
        within = relabeling.within.expand(len(weight), weight.shape[2])
        moved = weight[relabeling.tokens].gather(2, within[:, None].expand_as(weight))
        state = {**state_dict, "stem.weight": moved}
    if state is not None and "stem.pos_embed" in state:
        state = along(state, relabeling.tokens, {"stem.pos_embed": (0,)})
    if state is None:
        return None
    with torch.device("meta"):
        model = build(**given)
    for prefix, mixer in _mixers(model).items():
        held = {key: state[f"{prefix}.{key}"] for key in mixer.state_dict()}
        moved = mixer.relabel(held, relabeling)
        if moved is None:
            return None
        state |= {f"{prefix}.{key}": value for key, value in moved.items()}
    return state
