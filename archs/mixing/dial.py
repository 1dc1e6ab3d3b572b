"""One kernel for all places, and beside it a full matrix that is let in as far as a strictness s allows.

    M = K + (1 - s) (R - P R)

K is the matrix of a k x k kernel, R any matrix over the tokens and P R the kernel that is nearest to it (P_T M_k in
archs/ingredients/lift.py), so that what R adds is what no kernel can do. At s = 1 it is `kernel`, or `depthwise` where
each channel is a group, and trains as it does; at s = 0 it is `dense`, or `dense_c`, in another parametrisation: the
kernel's numbers are stored as a kernel's, so that they move faster than a matrix's entries. Relaxed sharing is Elsayed
et al., arXiv 2002.02959; a strictness that each layer learns is ConViT's gate, arXiv 2103.10697.

Start: with K0 as `kernel` and W0 as `dense` start from the same random numbers, R = W0 and
K = sqrt(1 - (1 - s)^2) K0 + (1 - s) P W0, both then scaled by the start's rule. So M is K0 at s = 1, W0 at s = 0 and
sqrt(1 - (1 - s)^2) K0 + (1 - s) W0, the same mean square, in between.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from archs.ingredients.lift import Geometry, project, sums
from archs.ingredients.mixer import Start
from archs.mixing import dense, kernel
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling, along
from archs.parts.weights import State

AXES = {"reach": "window", "places": "displacement"}  # at strictness 1; below it all is read, with each place's own


class Mixing(kernel.Mixing):
    """`weight` is K as of `kernel`, `rest` is R, (groups, N, N); `gate` is the logit of s, where each layer learns it.

    Args:
        strictness: s, or where the gate starts; fixed unless a run anneals it (`dial`).
    """

    def __init__(
        self,
        dim: int,
        grid: Grid,
        start: Start,
        *,
        kernel_size: int,
        wrap: bool,
        groups: int,
        strictness: float,
        gated: bool,
    ) -> None:
        if not 0 <= strictness <= 1:
            raise ValueError(f"strictness {strictness:g} is not from 0, a full matrix, to 1, the kernel")
        if gated and strictness in (0, 1):
            raise ValueError(f"strictness {strictness:g} is an end, and a gate starts between 0 and 1; give 0.5, say")
        super().__init__(dim, grid, start, kernel_size=kernel_size, wrap=wrap, groups=groups)
        self.geometry, self.kernel_size, self.initial = Geometry(grid=grid, wrap=wrap), kernel_size, float(strictness)
        self.hold("rest", (groups, self.num_tokens, self.num_tokens), start.g0 * self.num_tokens**-0.5)
        self.gate = nn.Parameter(torch.empty(1)) if gated else None
        for name in ("strictness", "kinds", "pairs"):
            self.register_buffer(name, None, persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Made anew where the weights are, which may have come from the meta device."""
        device, window = self.weight.device, self.kernel_size**2
        # A buffer: a step that changes it needs no new compilation. A scalar of float64 leaves other dtypes alone.
        self.strictness = torch.tensor(self.initial, dtype=torch.float64, device=device)
        self.kinds = self.geometry.kinds(self.kernel_size, device).flatten()
        self.pairs = sums(torch.ones_like(self.kinds), self.kinds, window + 1)[:window].clamp(min=1)

    def dial(self, strictness: float) -> None:
        """Set s. Raises ValueError for one that is none, or where a gate learns it."""
        if not 0 <= strictness <= 1 or self.gate is not None:
            raise ValueError(f"strictness {strictness:g} is not from 0 to 1, or a gate learns it")
        self.strictness.fill_(strictness)

    def softness(self) -> Tensor:
        """1 - s."""
        return 1 - self.strictness if self.gate is None else torch.sigmoid(-self.gate)

    def matrices(self) -> Tensor:
        return _between(self.value("weight"), self.value("rest"), self.softness(), self.kinds, self.pairs)

    def draw(self, generator: torch.Generator, order: Tensor) -> None:
        """As the file says; the two that it starts between draw from one state of the generator."""
        if self.order is not None:
            self.order.copy_(order)
        state, soft = generator.get_state(), 1 - self.initial
        groups, wrap = self.num_groups, self.geometry.wrap
        strict = kernel.Mixing(
            self.dim, self.grid, self.start, kernel_size=self.kernel_size, wrap=wrap, groups=groups
        ).to(self.weight.device)
        free = dense.Mixing(self.dim, self.grid, self.start, groups=groups).to(self.weight.device)
        if self.order is not None:
            strict.scramble()
            strict.order = strict.order.to(self.weight.device)
        strict.draw(generator, order)
        generator.set_state(state)
        free.draw(generator, order)
        with torch.no_grad():
            whole = free.value("weight")
            nearest = project(whole, self.geometry, self.kernel_size)[:, 0] / self.constant["weight"]
            self.weight.copy_((1 - soft**2) ** 0.5 * strict.weight + soft * nearest)
            self.rest.copy_(whole / self.constant["rest"])
            if self.gate is not None:
                self.gate.fill_(math.log(self.initial / soft))
            if 0 < self.initial < 1:  # at the ends both are scaled already, to the bit
                factor = (self.target / self.mean_square()) ** 0.5
                self.weight.mul_(factor)
                self.rest.mul_(factor)

    def freeze(self) -> None:
        if self.gate is not None:
            raise ValueError("a frozen mixer learns no gate; leave out gated or frozen")
        super().freeze()

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        moved = super().follow(state, relabeling)
        return None if moved is None else along(moved, relabeling.tokens, {"rest": (1, 2)})

    def macs(self) -> tuple[int, int]:
        nominal, executed = super().macs()
        return (nominal if self.initial == 1 else executed), executed


@torch.fx.wrap  # a leaf: a tracer knows no shapes
def _between(weight_Gkk: Tensor, rest_GNN: Tensor, softness: Tensor, kinds: Tensor, pairs: Tensor) -> Tensor:
    """K + (1 - s) (R - P R), in one look at each displacement."""
    found = sums(rest_GNN.flatten(1), kinds, len(pairs) + 1)[:, :-1] / pairs
    numbers = weight_Gkk.flatten(1) - softness * found
    return pad(numbers, [0, 1])[:, kinds].reshape(rest_GNN.shape) + softness * rest_GNN
