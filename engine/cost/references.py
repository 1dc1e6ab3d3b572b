"""Independent implementations of our models, with our arguments: timm's, or the authors' from a checkout of theirs."""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import archs

Own = dict[str, Any]


def _mixer(own: Own, **kind: Any) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_blocks=own["depth"], embed_dim=own["dim"], **_sizes(own), **kind)


def _resmlp(own: Own) -> nn.Module:
    from timm.models.mlp_mixer import Affine, ResBlock

    return _mixer(own, block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4)


def _gmlp(own: Own) -> nn.Module:
    from timm.layers import GatedMlp
    from timm.models.mlp_mixer import SpatialGatingBlock

    return _mixer(own, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp, mlp_ratio=6)


def _convmixer(own: Own) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    kind = {key: own[key] for key in ("kernel_size", "patch_size", "num_classes")}
    return ConvMixer(own["dim"], own["depth"], act_layer=nn.ReLU if own.get("act") == "relu" else nn.GELU, **kind)


def _deit(own: Own) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(embed_dim=own["dim"], depth=own["depth"], num_heads=own["num_heads"], **_sizes(own))


def _sizes(own: Own) -> Own:
    return {"in_chans": 3} | {
        key: own[key] for key in ("img_size", "patch_size", "num_classes", "in_chans") if key in own
    }


TIMM: dict[str, Callable[[Own], nn.Module]] = {
    "mixer": _mixer,
    "resmlp": _resmlp,
    "gmlp": _gmlp,
    "convmixer": _convmixer,
    "deit": _deit,
}
# family -> the authors' file, and the model that it makes of a variant's name and arguments
AUTHORS: dict[str, tuple[str, Callable[[ModuleType, str, Own], nn.Module]]] = {
    "vip": ("vip.py", lambda code, variant, own: getattr(code, f"vip_{variant}")()),
    "cyclemlp": ("cycle_mlp.py", lambda code, variant, own: getattr(code, f"CycleMLP_{variant.upper()}")()),
    "gfnet": ("gfnet.py", lambda code, variant, own: code.GFNet(embed_dim=own["dim"], depth=own["depth"])),
    "resmlp": ("resmlp_models.py", lambda code, variant, own: getattr(code, f"resmlp_{variant[1:]}")()),
    "convmixer": (
        "convmixer.py",
        lambda code, variant, own: code.ConvMixer(
            own["dim"], own["depth"], own["kernel_size"], own["patch_size"], own["num_classes"]
        ),
    ),
}
# What the authors' files import from places that no longer exist, and where it went.
MOVED = {"timm.models.layers.helpers": "timm.layers.helpers", "numpy.lib.arraypad": "numpy"}


def reference(name: str, checkouts: Sequence[Path] = ()) -> tuple[str, nn.Module]:
    """Who wrote it, and a model equal to `create(name)` but for its weights.

    Raises ValueError for a family without an implementation in timm or, where its file is found, in `checkouts`.
    """
    family, _, variant = name.partition("_")
    own = archs.arguments(name)
    file, make = AUTHORS.get(family, ("", None))
    for folder in checkouts:
        for path in sorted(folder.rglob(file)) if file else ():
            return f"authors, {path.name}", make(_load(path), variant, own)
    if family not in TIMM:
        hint = f"give --reference-dir a checkout with {file}" if file else "no public code is known to this program"
        raise ValueError(f"{name}: timm has no such family; {hint}")
    return "timm", TIMM[family](own)


def pair(name: str, checkouts: Sequence[Path] = ()) -> tuple[nn.Module, nn.Module, str]:
    """Ours and the reference with the same weights, those of the reference, and who wrote that."""
    who, theirs = reference(name, checkouts)
    found = archs.convert_checkpoint(name, theirs.state_dict())
    ours = archs.create(name)
    ours.load_state_dict(found.state_dict)
    return ours, theirs, who


def _load(path: Path) -> ModuleType:
    for old, new in MOVED.items():
        sys.modules.setdefault(old, importlib.import_module(new))
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module
