"""First layer: do the hidden units of a flat net become local and smooth, as filters are?

The weights w of a unit that reads all pixels are an image; e = sum of w^2 over the channels is its mass, p = e / sum e.

    half_radius     R50, pixels: radius about the centroid that holds half of the mass
    rms_radius      pixels: sqrt(sum p d^2), d the distance from the centroid
    entropy         of p, over log of the number of pixels          1 for all alike, 0 for one
    participation   1 / (H W sum p^2)                               1 for all alike, 1 / H W for one
    moran_energy    Moran's I of e over next neighbours             moran_signed: of w itself
    low_frequency   share of the squared spectrum within 3 cycles per image
    gabor           R^2 of the nearest Gabor function, of w's first component over the channels, of 8 units
    recovered       share of each pixel's next neighbours that are among as many whose weights, over all units, point
                    most nearly in the same direction

Without a word at its end a number is of the weights, `_start` of those at the start of training, `_change` of their
difference, which says what was learned where the start is large. Pixels are those of the original image, also of a run
with --permute.

Null: of independent normal weights, exactly (entropy, participation, low_frequency; Moran's I -1 / (H W - 1) over all
orders of the pixels; recovered by chance), or the same weights with their pixels in random order (radii, gabor). The
interval is over hidden units, of `recovered` over pixels.
Source: Ingrosso and Goldt, PNAS 119 (2022) for participation; Bachmann et al., arXiv 2306.13575, appendix C, shows such
images; Moran, Biometrika 37 (1950).
Expect: the change smooth long before it is local: Moran's I far above its null, R50 near it; more of both with data and
augmentation. Nothing for models with patches.
Cost: no pass; the Gabor fits.
"""

import numpy as np
from scipy.special import digamma
from torch import nn

from analysis.bias.probe import Estimate, Rearranged, Subject, over_images
from analysis.measures import fields, gabor
from analysis.measures.pictures import tiles
from archs.lattice import Stem
from archs.parts.backbone import Backbone

PROTOCOL = {"units": 256, "gabor_units": 8, "cycles": 3, "orders": 4, "seed": 0}
UNITS = {
    "half_radius": "px", "rms_radius": "px", "entropy": "ratio", "participation": "ratio", "moran_energy": "ratio",
    "moran_signed": "ratio", "low_frequency": "ratio", "gabor": "ratio", "recovered": "ratio",
    "half_radius_start": "px", "rms_radius_start": "px", "entropy_start": "ratio", "participation_start": "ratio",
    "moran_energy_start": "ratio", "moran_signed_start": "ratio", "low_frequency_start": "ratio",
    "recovered_start": "ratio", "half_radius_change": "px", "rms_radius_change": "px",
    "entropy_change": "ratio", "participation_change": "ratio", "moran_energy_change": "ratio",
    "moran_signed_change": "ratio", "low_frequency_change": "ratio", "gabor_change": "ratio",
    "recovered_change": "ratio",
}  # fmt: skip
HEADLINE = ("half_radius_change", "moran_energy", "moran_energy_change", "moran_signed_change", "gabor_change",
            "recovered_change")  # fmt: skip
TITLE = "First layer of flat nets: how local and smooth its weights are"
WORDS = {"half_radius_change": "R50 of the change", "moran_energy": "Moran's I", "recovered_change": "neighbours found"}
COST = (0, 3)
OVER_TRAINING = True


def measure(subject: Subject) -> dict[str, Estimate]:
    """{} for a model whose first layer does not read all pixels at once."""
    if (now := weights(subject.model, subject.img_size)) is None:
        return {}
    sets = {"": now}
    if subject.start is not None:
        sets |= {"_start": (before := weights(subject.start, subject.img_size)), "_change": now - before}
    found = {suffix: locality(w, fit=suffix != "_start") for suffix, w in sets.items() if w.any()}
    return {f"{key}{suffix}": each for suffix, numbers in found.items() for key, each in numbers.items()}


def weights(model: nn.Module, img_size: int) -> np.ndarray | None:
    """(units, C, H, W) of a first layer that reads the whole image, its pixels in their original places."""
    inner = model.model if isinstance(model, Rearranged) else model
    if not isinstance(inner, Backbone):
        return None
    pixels = inner.in_chans * img_size**2
    layers = [each for each in inner.stem.modules() if isinstance(each, (nn.Linear, Stem))]
    if not layers or layers[0].weight.shape[1:] != (pixels,):
        return None
    found = layers[0].weight.detach().double().cpu().unflatten(1, (inner.in_chans, -1))
    if isinstance(model, Rearranged):  # place i of the input has pixel places[i]
        found = found[..., model.places.cpu().argsort()]
    return found.unflatten(2, (img_size, img_size)).numpy()


def locality(w_UCHW: np.ndarray, fit: bool = True) -> dict[str, Estimate]:
    """All numbers of one set of weights; without `fit` all but gabor, which takes longest."""
    rng = np.random.default_rng(PROTOCOL["seed"])
    w = w_UCHW[np.linspace(0, len(w_UCHW) - 1, min(len(w_UCHW), PROTOCOL["units"])).astype(int)]
    w = w[(w != 0).any((1, 2, 3))]
    U, C, H, W = w.shape
    energy = (w**2).sum(1)
    shuffled = [_shuffled(w, rng) for _ in range(PROTOCOL["orders"])]
    nulls = normal_nulls(C, H * W)
    result = {}
    for key, f in (("half_radius", fields.half_radius), ("rms_radius", fields.rms_radius)):
        null = float(np.mean([f((each**2).sum(1)).mean() for each in shuffled]))
        result[key] = _over_units(f(energy), null)
    result["entropy"] = _over_units(fields.entropy(energy), nulls["entropy"])
    result["participation"] = _over_units(fields.participation(energy), nulls["participation"])
    by_chance = -1 / (H * W - 1)
    result["moran_energy"] = _over_units(fields.moran(energy[:, None]), by_chance)
    result["moran_signed"] = _over_units(fields.moran(w), by_chance)
    share = float(fields.within_frequency((H, W), PROTOCOL["cycles"]).mean())
    result["low_frequency"] = _over_units(fields.low_frequency(w, PROTOCOL["cycles"]), share)
    if fit:
        some = np.linspace(0, U - 1, min(U, PROTOCOL["gabor_units"])).astype(int)
        own, null = (np.array([gabor.explained(component(one)) for one in each[some]]) for each in (w, shuffled[0]))
        result["gabor"] = _over_units(own, float(null.mean()))
    found_P, chance = recovered(w_UCHW)
    return result | {"recovered": _over_units(found_P, chance)}


def normal_nulls(chans: int, pixels: int) -> dict[str, float]:
    """Entropy and participation of independent normal weights of many pixels: e is a gamma variable of shape C / 2.

    participation E[e]^2 / E[e^2] = C / (C + 2); entropy 1 + (log E[e] - E[e log e] / E[e]) / log pixels.
    """
    shape = chans / 2
    entropy = 1 + (np.log(shape) - digamma(shape + 1)) / np.log(pixels)
    return {"entropy": float(entropy), "participation": chans / (chans + 2)}


def component(w_CHW: np.ndarray) -> np.ndarray:
    """The image (H, W) that explains most of one unit's channels."""
    _, sizes, images = np.linalg.svd(w_CHW.reshape(len(w_CHW), -1), full_matrices=False)
    return sizes[0] * images[0].reshape(w_CHW.shape[1:])


def recovered(w_UCHW: np.ndarray) -> tuple[np.ndarray, float]:
    """For each pixel the share of its next neighbours found among as many of the most similar pixels; by chance."""
    U, C, H, W = w_UCHW.shape
    columns = w_UCHW.reshape(U * C, H * W)
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    alike = columns.T @ columns
    np.fill_diagonal(alike, -np.inf)
    order = (-alike).argsort(1, kind="stable")
    rows, cols = np.divmod(np.arange(H * W), W)
    next_to = np.abs(rows[:, None] - rows) + np.abs(cols[:, None] - cols) == 1
    counts = next_to.sum(1)
    shares = [next_to[i, order[i, :count]].mean() for i, count in enumerate(counts)]
    return np.array(shares), float(counts.mean() / (H * W - 1))


def draw(subject: Subject) -> bytes | None:
    """The weights of 64 units, and below them what training changed of these."""
    if (now := weights(subject.model, subject.img_size)) is None:
        return None
    sets = [now] if subject.start is None else [now, now - weights(subject.start, subject.img_size)]
    some = np.linspace(0, len(now) - 1, min(64, len(now))).astype(int)
    maps = [component(each[unit]) * (np.sign(component(each[unit]).sum()) or 1) for each in sets for unit in some]
    return tiles(np.stack(maps))


def _shuffled(w_UCHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each unit's pixels in an order of its own, the same for all its channels."""
    U, C, H, W = w_UCHW.shape
    order = rng.random((U, 1, H * W)).argsort(-1)
    return np.take_along_axis(w_UCHW.reshape(U, C, -1), order, -1).reshape(w_UCHW.shape)


def _over_units(values_U: np.ndarray, null: float) -> Estimate:
    return over_images(values_U[:, None], lambda means: means[..., 0], null)
