"""Token merging: between attention and MLP, the most alike tokens of two halves of the sequence become one.

Written from the paper. In each layer that merges:

1. tokens are dealt in turn to two sets, those of even and of odd place; the class token, at place 0, stays out of it;
2. an edge goes from each even token to the odd one whose key is most alike, by the cosine of the keys averaged over
   the heads; the `r` edges of highest cosine are kept, at most half of the tokens that may merge;
3. each odd token becomes the mean of itself and of what its edges bring, weighted by how many patches each stands for;
4. the tokens left are, in order, the even ones without a kept edge, then the odd ones.

From then on attention counts a token as often as it stands for a patch, softmax(q k^T / sqrt(d) + log size)
("proportional attention", equation 1). Order decides who meets whom in the next layer, so it is part of the method;
the paper's code keeps it as here where there is a class token, and sorts by likeness where there is none.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from archs.attention.diluted import Diluted
from archs.parts.backbone import Stream
from archs.parts.layers import Residual

SOURCE = "Bolya et al., Token merging: your ViT but faster, arXiv 2210.09461, section 3 and appendix D"


class Edges(NamedTuple):
    """Which tokens stay, and which go where: places in the sequence, per image."""

    kept: Tensor
    """(B, N/2 - r): even places without a kept edge, ascending."""
    source: Tensor
    """(B, r): even places whose token moves."""
    target: Tensor
    """(B, r): odd places that take them."""


def num_merged(num_tokens: int, r: int, protected: int) -> int:
    """Tokens fewer after a merge: r, but at most half of those that may merge."""
    return max(0, min(r, (num_tokens - protected) // 2))


def match(keys_BND: Tensor, r: int, *, class_token: bool) -> Edges:
    """The `r` best edges by the cosine of keys; equal ones are taken in the order of their places."""
    with torch.no_grad():
        # A mean of keys that is all zeros is like no other, and no reason to divide by zero.
        unit_BND = nn.functional.normalize(keys_BND, dim=-1)
        alike = unit_BND[:, ::2] @ unit_BND[:, 1::2].transpose(1, 2)
        if class_token:
            alike[:, 0] = -torch.inf
        best, partner = alike.max(2)
        order = best.argsort(dim=1, descending=True, stable=True)
        moved = order[:, :r]
        return Edges(2 * order[:, r:].sort(1).values, 2 * moved, 2 * partner.gather(1, moved) + 1)


def merge(x_BNC: Tensor, size_BN: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Tokens (B, N - r, C) and the patches that each stands for (B, N - r): sizes add up, tokens are their mean."""
    width = x_BNC.shape[2]
    weighted = x_BNC * size_BN[..., None]

    def rows(tokens: Tensor, places: Tensor) -> Tensor:
        return tokens.gather(1, places[..., None].expand(-1, -1, width))

    into = edges.target // 2
    odd = weighted[:, 1::2].scatter_add(1, into[..., None].expand(-1, -1, width), rows(weighted, edges.source))
    odd_size = size_BN[:, 1::2].scatter_add(1, into, size_BN.gather(1, edges.source))
    kept = rows(x_BNC, edges.kept)
    return (
        torch.cat([kept, odd / odd_size[..., None]], 1),
        torch.cat([size_BN.gather(1, edges.kept), odd_size], 1),
    )


class MergingBlock(nn.Sequential):
    """A layer, its two halves named as ever, that may merge between them: (x, sizes) -> (x, sizes).

    Attributes:
        merge_r: tokens that it merges away; 0, and always where it has no attention left: none.
    """

    merge_r = 0

    def __init__(self, *halves: nn.Module, class_token: bool, proportional: bool) -> None:
        super().__init__(*halves)
        self.class_token, self.proportional = class_token, proportional

    @property
    def attends(self) -> bool:
        """Whether it has attention, and for good."""
        return isinstance(self[0], Residual) and not isinstance(self[0], Diluted)

    def forward(self, x_BNC: Tensor, size_BN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        first, second = self
        keys = None
        if isinstance(first, Residual) and not getattr(first, "gone", False):
            mixed, keys = first.branch.attend(first.norm(x_BNC), size_BN if self.proportional else None)
            mixed = first.drop_path(first.scale(mixed))
            x_BNC = (first.join(x_BNC, mixed) if isinstance(first, Diluted) else x_BNC + mixed).to(x_BNC.dtype)
        else:
            x_BNC = first(x_BNC)
        r = num_merged(x_BNC.shape[1], self.merge_r, int(self.class_token))
        if r and keys is not None:
            size_BN = x_BNC.new_ones(x_BNC.shape[:2]) if size_BN is None else size_BN
            x_BNC, size_BN = merge(x_BNC, size_BN, match(keys, r, class_token=self.class_token))
        return second(x_BNC).to(x_BNC.dtype), size_BN


class MergingStream(Stream):
    """Layers in a row of which those that keep attention merge `merge_r` tokens each, from number `merge_start` on.

    Only layers that keep their attention are counted, from 0, as in the removal's code.
    """

    def __init__(self, *blocks: MergingBlock, merge_r: int, merge_start: int) -> None:
        super().__init__(*blocks)
        self.merge_r, self.merge_start = merge_r, merge_start
        self.place()

    def place(self) -> None:
        """Say to each layer how many tokens it merges; again after attention was put on its way out.

        Raises ValueError where none is left to merge.
        """
        attending = [block for block in self if block.attends]
        if self.merge_start >= len(attending):
            raise ValueError(f"merge_start {self.merge_start}: {len(attending)} layers keep their attention, from 0 on")
        for block in self:
            block.merge_r = self.merge_r if block in attending[self.merge_start :] else 0

    def forward(self, x_BNC: Tensor) -> Tensor:
        size_BN = None
        for block in self:
            x_BNC, size_BN = block(x_BNC, size_BN)
        return x_BNC
