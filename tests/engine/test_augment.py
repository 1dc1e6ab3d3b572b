"""Each augmentation against an independent implementation: Pillow, OpenCV, timm, torchvision; and its distribution."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_ops
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import TrivialAugmentWide, functional

from engine.data.augment import kernels, photometric, pipeline, policy, resample
from engine.data.augment.pipeline import Augmentation

KEY = np.uint64(1234567)
FILL = (120, 121, 122)
MOVE = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
PILLOW = {
    "AutoContrast": lambda image, _: timm_ops.auto_contrast(image),
    "Equalize": lambda image, _: timm_ops.equalize(image),
    "Invert": lambda image, _: timm_ops.invert(image),
    "Posterize": lambda image, bits: timm_ops.posterize(image, int(bits)),
    "Solarize": timm_ops.solarize,
    "SolarizeAdd": lambda image, add: timm_ops.solarize_add(image, int(add)),
    "Brightness": timm_ops.brightness,
    "Contrast": timm_ops.contrast,
    "Color": timm_ops.color,
    "Sharpness": timm_ops.sharpness,
    "ShearX": lambda image, arg: timm_ops.shear_x(image, arg, **MOVE),
    "ShearY": lambda image, arg: timm_ops.shear_y(image, arg, **MOVE),
    "TranslateX": lambda image, arg: timm_ops.translate_x_abs(image, arg, **MOVE),
    "TranslateY": lambda image, arg: timm_ops.translate_y_abs(image, arg, **MOVE),
    "Rotate": lambda image, arg: timm_ops.rotate(image, arg, **MOVE),
}
FACTORS, SHEARS, PIXELS = (0.1, 0.5, 1.0, 1.37, 1.9), (-0.99, -0.3, 0.111, 0.3), (-5.3, 2.0, 7.77, 32.0)
ARGS = {
    "AutoContrast": (0,),
    "Equalize": (0,),
    "Invert": (0,),
    "Posterize": (1, 2, 4, 7, 8),
    "Solarize": (0, 26, 128.5, 256),
    "SolarizeAdd": (0, 50, 110),
    **dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), FACTORS),
    **dict.fromkeys(("ShearX", "ShearY"), SHEARS),
    **dict.fromkeys(("TranslateX", "TranslateY"), PIXELS),
    "Rotate": (-30, 0, 13.7, 90, -135),
}


def pictures(height, width):
    """Noise, noise of little contrast, a gradient, and one colour."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([y * 7, x * 5, (x + y) * 3], -1).astype(np.uint8)
    return [noise, noise // 4 + 60, gradient, np.full_like(noise, 77)]


def applied(image, op, arg, fill=FILL):
    out = image.copy()[None]
    ops, args = np.array([[photometric.OPS.index(op)]]), np.array([[float(arg)]])
    photometric.apply(out, ops, args, np.array(fill[: image.shape[2]], np.uint8))
    return out[0]


# --- operations ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", PILLOW)
def test_an_operation_is_pillows(op):
    """Bit for bit, but for rotations, where the last bit of a position moves some values by one level."""
    assert set(PILLOW) == set(photometric.OPS) - {"Identity"}
    for size in ((32, 32), (17, 29), (8, 8), (2, 2)):
        for image in pictures(*size):
            for arg in ARGS[op]:
                wanted = np.asarray(PILLOW[op](Image.fromarray(image), arg)).astype(int)
                difference = abs(applied(image, op, arg) - wanted)
                assert difference.max() <= (op == "Rotate"), (op, arg, size)


@pytest.mark.parametrize("op", sorted(set(PILLOW) - {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}))
def test_an_operation_on_a_grey_image_is_pillows(op):
    image = pictures(28, 28)[2][..., :1].copy()
    for arg in ARGS[op]:
        wanted = np.asarray(PILLOW[op](Image.fromarray(image[..., 0]), arg))
        assert (applied(image, op, arg)[..., 0] == wanted).all()


# --- policies --------------------------------------------------------------------------------------------------------
def drawn(aa, count=4000, img_size=32):
    chosen = policy.parse(aa)
    rows, weights = policy.table(chosen, img_size)
    ops, args = np.zeros((count, chosen.layers), np.int64), np.zeros((count, chosen.layers))
    pipeline.choose(np.arange(count), KEY, rows, weights, chosen.std, chosen.magnitude_max, ops, args)
    return ops, args


@pytest.mark.parametrize("increasing", [0, 1])
@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
def test_randaugment_has_timms_operations_and_magnitudes(increasing, magnitude):
    ops, args = drawn(f"rand-m{magnitude}-n1-p1-inc{increasing}")
    names = timm_ops.rand_augment_choices("", increasing=bool(increasing))
    seen = {}
    for op, arg in zip(ops[:, 0], args[:, 0], strict=True):
        seen.setdefault(photometric.OPS[op], set()).add(round(float(arg), 9))
    wanted = {}
    for name in names:
        level = timm_ops.LEVEL_TO_ARG[name]
        values = {level(magnitude, {})[0] for _ in range(60)} if level else {0.0}
        op = name.removesuffix("Increasing").removesuffix("Rel")
        moved = 32 if name.endswith("Rel") else 1
        wanted[op] = {round(float(value) * moved, 9) for value in values}
    assert seen == wanted
    counts = np.bincount(ops[:, 0], minlength=16)[1:]
    assert stats.chisquare(counts).pvalue > 1e-4


def test_randaugment_draws_layers_probability_and_noise():
    ops, args = drawn("rand-m9-n3-mstd0.5-inc1", 20_000)
    assert ops.shape[1] == 3 and abs((ops > 0).mean() - 0.5) < 0.01
    assert abs(np.corrcoef((ops > 0).T) - np.eye(3)).max() < 0.03
    rotations = abs(args[ops == photometric.ROTATE]) / 3  # back to magnitudes, which are cut off at 10
    inner = rotations[rotations < 9.9]
    truth = stats.truncnorm(-np.inf, (9.9 - 9) / 0.5, 9, 0.5)
    assert stats.kstest(inner, truth.cdf).pvalue > 1e-4
    assert abs((rotations == 10).mean() - stats.norm.sf(2)) < 0.02
    uniform = drawn("rand-m8-n1-p1-mstd101-inc1", 20_000)
    levels = abs(uniform[1][uniform[0] == photometric.SHEAR_X]) / 0.03
    assert stats.kstest(levels, stats.uniform(0, 8).cdf).pvalue > 1e-4


def test_weighted_randaugment_repeats_no_operation():
    ops, _ = drawn("rand-n2-p1-tweights", 20_000)
    assert (ops[:, 0] != ops[:, 1]).all()
    weights = timm_ops.rand_augment_choices("weights")
    share = (ops[:, 0] == photometric.ROTATE).mean()
    assert share == pytest.approx(weights["Rotate"] / sum(weights.values()), abs=0.02)


def test_trivialaugment_has_torchvisions_operations_and_magnitudes():
    ops, args = drawn("trivial", 60_000)
    space = TrivialAugmentWide()._augmentation_space(31)
    assert set(space) == {photometric.OPS[op] for op in set(ops.ravel())}
    assert stats.chisquare(np.bincount(ops[:, 0])[sorted(set(ops[:, 0]))]).pvalue > 1e-4
    for name, (magnitudes, signed) in space.items():
        seen = sorted({round(float(arg), 5) for arg in args[ops == photometric.OPS.index(name)]})
        values = np.atleast_1d(magnitudes.numpy().astype(float))
        if "Translate" in name:
            values = np.trunc(values.round(4))  # torchvision has 15.999999 for 16
        values = np.concatenate([values, -values]) if signed else values
        values = values + 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else values
        # The sign is the sense of the shift; torchvision's moves are ours with the sign reversed, and both occur.
        assert np.allclose(seen, sorted({round(value, 5) for value in values.tolist()}), atol=2e-5), name


def test_trivialaugments_shear_is_torchvisions():
    image = pictures(32, 32)[2]
    angle = math.degrees(math.atan(0.3))
    sheared = functional.affine(
        Image.fromarray(image),
        0.0,
        [0, 0],
        1.0,
        [angle, 0.0],
        functional.InterpolationMode.BILINEAR,
        FILL,
        center=[0, 0],
    )
    assert any(abs(applied(image, "ShearX", sign * 0.3) - np.asarray(sheared, int)).mean() < 1.5 for sign in (1, -1))


@pytest.mark.parametrize("aa", ["autoaug", "original", "originalr-mstd0.5", "v0", "v0r", "cifar10"])
def test_an_autoaugment_policy_draws_one_row_for_both_operations(aa):
    ops, _ = drawn(aa, 20_000)
    rows, _ = policy.table(policy.parse(aa), 32)
    assert rows.shape == (25, 2, 9) and ops.shape[1] == 2
    pairs = {tuple(pair) for pair in rows[:, :, 0].astype(int).tolist()}
    both = ops[(ops > 0).all(1)]
    assert {tuple(pair) for pair in both.tolist()} <= pairs
    assert (ops[:, 0] > 0).mean() == pytest.approx(rows[:, 0, 1].mean(), abs=0.02)


def test_the_policies_known_by_heart():
    """Two rows each, copied from the paper's tables, so that a change in a library is noticed."""
    rows, _ = policy.table(policy.parse("cifar10"), 32)
    assert photometric.OPS[int(rows[1, 0, 0])] == "Rotate" and rows[1, 0, 1] == 0.7
    assert rows[1, 0, 2] * 3 == pytest.approx(30 * 2 / 9)
    rows, _ = policy.table(policy.parse("original"), 32)
    assert [photometric.OPS[int(op)] for op in rows[0, :, 0]] == ["Posterize", "Rotate"]
    assert rows[0, :, 1].tolist() == [0.4, 0.6] and rows[0, :, 2].tolist() == [8, 9]


@pytest.mark.parametrize(
    "aa",
    [
        *("rnd-m9", "rand-m9-x3", "rand-9", "rand-m9-m8", "rand-m9.5", "rand-n0", "rand-p1.5", "rand-inc2", "rand-t3a"),
        *("randm9", "trivial-m9", "Trivial", "original-m9", "augmix-m3"),
    ],
)
def test_a_misspelt_policy_is_refused_with_the_forms(aa):
    with pytest.raises(ValueError, match=r"valid: rand-m9-n2-mstd0\.5-inc1"):
        policy.parse(aa)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="scale and crop_pad"):
        Augmentation(32, scale=(0.08, 1.0), crop_pad=4)
    with pytest.raises(ValueError, match="color_jitter"):
        Augmentation(32, aa="trivial", color_jitter=0.4)
    with pytest.raises(ValueError, match=r"scale 1 0\.5"):
        Augmentation(32, scale=(1.0, 0.5))
    with pytest.raises(ValueError, match="valid: rand"):
        Augmentation(32, aa="rand-m9-mstd")


# --- crops, jitter, erasing ------------------------------------------------------------------------------------------
def boxes(height, width, scale, ratio=(3 / 4, 4 / 3), count=4000, shape=(1, 1)):
    out = np.empty((count, 4), np.int64)
    heights, widths = np.full(count, height), np.full(count, width)
    pipeline.boxes(np.arange(count), heights, widths, KEY, scale, ratio, shape, out)
    return out


@pytest.mark.parametrize("height, width", [(256, 256), (200, 300), (32, 32)])
def test_random_resized_crops_are_distributed_as_timms(height, width):
    ours = boxes(height, width, (0.08, 1.0))
    image = Image.new("RGB", (width, height))
    timm_boxes = [
        RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(len(ours))
    ]
    theirs = np.array(timm_boxes)
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / height,
        lambda box: box[:, 1] / width,
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).statistic < 0.05
    area, aspect = ours[:, 2] * ours[:, 3] / (height * width), ours[:, 3] / ours[:, 2]
    assert area.min() < 0.1 and area.max() > 0.85 and 0.6 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.6
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_crop_that_never_fits_falls_back_to_the_centre():
    assert boxes(100, 10, (1.0, 1.0), count=1).tolist() == [[43, 0, 13, 10]]
    assert boxes(10, 100, (1.0, 1.0), count=1).tolist() == [[0, 43, 10, 13]]
    assert boxes(30, 50, (0.0, 0.0), count=1).tolist() == [[0, 10, 30, 30]]
    assert boxes(30, 50, (0.0, 0.0), count=1, shape=(32, 64)).tolist() == [[2, 0, 25, 50]]
    tiny = boxes(2, 2, (0.01, 0.05))
    assert tiny.min() >= 0 and tiny[:, 2:].min() >= 1


def test_jitter_is_torchvisions():
    """All six orders, factors over the whole range, and the pixels of Pillow's operations one after the other."""
    count = 3000
    ops, args = np.empty((count, 3), np.int64), np.empty((count, 3))
    pipeline.jitter(np.arange(count), KEY, 0.4, pipeline._JITTERED, ops, args)
    orders, counts = np.unique(ops, axis=0, return_counts=True)
    assert len(orders) == 6 and stats.chisquare(counts).pvalue > 1e-4
    assert stats.kstest(args.ravel(), stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
    image = pictures(32, 32)[0]
    wanted = Image.fromarray(image)
    for op, arg in zip(ops[0], args[0], strict=True):
        wanted = PILLOW[photometric.OPS[op]](wanted, arg)
    out = image.copy()[None]
    Augmentation(32, color_jitter=0.4).finish(out, np.array([0]), KEY)
    assert (out[0] == np.asarray(wanted)).all()


def erased(count, probability, remode, size=32, mean=(100.0, 110.0, 120.0), std=(10.0, 20.0, 30.0)):
    images = np.full((count, size, size, 3), 255, np.uint8)
    Augmentation(size, mean, std, reprob=probability, remode=remode).finish(images, np.arange(count), KEY)
    return images


def test_erasing_has_timms_probability_areas_and_aspects():
    images = erased(8000, 0.25, "const")
    hit = (images != 255).any((1, 2, 3))
    assert hit.mean() == pytest.approx(0.25, abs=0.02)
    holes = (images[hit] == (100, 110, 120)).all(3)
    ours = [(np.ptp(np.nonzero(hole.any(1))[0]) + 1, np.ptp(np.nonzero(hole.any(0))[0]) + 1) for hole in holes]
    assert all(height * width == hole.sum() for (height, width), hole in zip(ours, holes, strict=True)), "no rectangle"
    import torch

    theirs = []
    erase = RandomErasing(1.0, device="cpu")
    for _ in range(len(ours)):
        hole = (erase(torch.ones(1, 32, 32)) == 0)[0].numpy()
        theirs.append((np.ptp(np.nonzero(hole.any(1))[0]) + 1, np.ptp(np.nonzero(hole.any(0))[0]) + 1))
    ours, theirs = np.array(ours), np.array(theirs)
    assert stats.ks_2samp(ours.prod(1), theirs.prod(1)).statistic < 0.06
    assert stats.ks_2samp(ours[:, 0] / ours[:, 1], theirs[:, 0] / theirs[:, 1]).statistic < 0.06


def test_erased_pixels_are_normal_after_normalisation():
    images = erased(300, 1.0, "pixel")
    values = images[(images != 255).all(3)].astype(float)
    assert np.allclose(values.mean(0), (100, 110, 120), atol=1.0)
    assert np.allclose(values.std(0), (10, 20, 30), rtol=0.03)
    assert abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.02


def test_draws_are_uniform_and_independent():
    samples = np.arange(20_000)
    operations = (pipeline.FLIP, pipeline.JITTER, pipeline.ERASE, pipeline.RESIZED_CROP, pipeline.POLICY)
    draws = [pipeline.uniform_numpy(KEY, samples, operation) for operation in operations]
    assert all(stats.kstest(draw, "uniform").pvalue > 1e-4 for draw in draws)
    assert abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.03


@pytest.mark.parametrize("together", [1, 7, 40])
def test_pixels_do_not_depend_on_what_is_augmented_together(together):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    samples = rng.permutation(1000)[:40]
    every = Augmentation(16, aa="rand-m9-n3-mstd0.5-inc1", reprob=0.5, remode="pixel", mean=FILL, std=(60.0,) * 3)
    whole, parts = images.copy(), images.copy()
    every.finish(whole, samples, KEY)
    for start in range(0, 40, together):
        every.finish(parts[start : start + together], samples[start : start + together], KEY)
    assert (whole == parts).all() and (whole != images).any()


def test_kernels_call_no_kernel_of_another_file():
    """numba's cache does not notice a change in another file, so that stale machine code would run."""
    for module in (photometric, resample):
        tree = ast.parse(Path(module.__file__).read_text())
        names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert [name for name in names if "engine" in name] == ["from engine.data.augment.kernels import kernel"]
    assert not [value for value in vars(kernels).values() if isinstance(value, Dispatcher)]
    compiled = [value for value in vars(pipeline).values() if isinstance(value, Dispatcher)]
    assert len(compiled) > 6
    own = {name for name, value in vars(pipeline).items() if getattr(value, "__module__", "") == pipeline.__name__}
    ours = {"photometric", "parse", "table"}
    assert own and not [kernel for kernel in compiled if set(kernel.py_func.__code__.co_names) & ours]
