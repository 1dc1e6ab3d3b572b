"""The zoo's public face: names, models, checkpoints.

A family is one file, `archs/FAMILY.py` (archs/parts/family.py says what it holds). `parts/` is what families are made
of, `formats/` how public files spell their weights, `timm_zoo` makes all of it timm's. In the family `lattice` the
token mixer is a file of its own, `mixing/NAME.py`, made of `ingredients/`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from archs.ingredients.difference import difference
from archs.parts.zoo import arguments, create, defaults, families, fitted, list_archs, symmetry, variants

if TYPE_CHECKING:
    from archs.parts.convert import Checkpoint

__all__ = [
    "arguments",
    "convert_checkpoint",
    "create",
    "defaults",
    "difference",
    "families",
    "fitted",
    "list_archs",
    "symmetry",
    "variants",
]


def convert_checkpoint(name: str, file: Mapping[str, Any], **overrides: Any) -> "Checkpoint":
    """The weights of a public checkpoint, in whatever layout and wrapping, under this zoo's names.

    Args:
        file: what `torch.load` or `numpy.load` gave: a state dict, or a dict that holds one.
        overrides: arguments of the family's `build`, as for `create`.

    Returns:
        The state dict, which `create(name, **{**overrides, **implied})` loads strictly, and what the file implies.

    Raises:
        ValueError: unknown name, weights left over, missing or of another shape, or an override that the file belies.
    """
    from archs.parts import convert

    return convert.convert_checkpoint(name, file, **overrides)
