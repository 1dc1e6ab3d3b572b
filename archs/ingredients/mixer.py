"""What a token mixer's module is: its numbers, how they start and are stored, and its tokens in another order.

Start: numbers are drawn, then one tensor is scaled so that trace(M R M^T) / N, the mean over the channels, is g0^2.
R[i, j] = floor + (1 - floor) exp(-d / length), d the larger of row and column distance, is the second moment of normed
tokens (floor 0.19 and length 1.1 on CIFAR-10 with patches of 4; 0 and 0 is white). Equal variance of independent
weights would leave one kernel between 0.41 and 2.21 times its mean square on images, and an average far above.

Storage: AdamW moves each stored number by about the learning rate, so a mixer of few, large numbers would move less
relative to its weights than one of many. A tensor whose entries of M have the deviation s is therefore stored as W
with M = a W, a = (s sqrt(N) / g0) ^ (2 e). With the exponent e of 1/2 all are stored with the deviation g0 / sqrt(N);
with 0 they are stored as they are.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archs.ingredients import places
from archs.parts.backbone import Grid
from archs.parts.relabeling import Relabeling
from archs.parts.weights import State

GELU_SQUARE = 0.4252  # E gelu(z)^2, z normal
GATE_SQUARE = 1.9  # E x^2 (M x)^2 over E (M x)^2 on normed tokens


@dataclass(frozen=True, kw_only=True)
class Start:
    """How mixers start: `g0` is the root mean square of what one puts out."""

    g0: float
    exponent: float = 0.5
    floor: float = 0.19
    length: float = 1.1

    def second_moment(self, grid: Grid) -> Tensor:
        """R, (N, N)."""
        d = places.distances(grid)
        decay = (-d / self.length).exp() if self.length else (d == 0).double()
        return self.floor + (1 - self.floor) * torch.where(d == 0, 1.0, decay)


class Mixer(nn.Module):
    """x_BHWC -> y_BHWC, without a bias. A subclass makes its tensors with `hold` and says what `mix` does.

    It may change: `linear`, the part that the start's rule is about; `scaled`, the tensor that the rule scales (None:
    the drawn numbers are right as they are); `target`, the mean square that it makes; `follow`.
    """

    def __init__(self, dim: int, grid: Grid, start: Start) -> None:
        super().__init__()
        self.dim, self.grid, self.start, self.num_tokens = dim, grid, start, grid[0] * grid[1]
        self.deviation: dict[str, float] = {}
        self.constant: dict[str, float] = {}
        self.scaled: str | None = None
        self.target = start.g0**2
        self.register_buffer("order", None)

    # --- what a subclass makes and says

    def hold(self, name: str, shape: tuple[int, ...], deviation: float) -> None:
        """A learned tensor whose effective entries start normal with this deviation; the last one made is scaled.

        Of two axes or more, because timm's optimizers decay no others.
        """
        assert len(shape) > 1, "tensors of one axis are not decayed"
        ratio = deviation * self.num_tokens**0.5 / self.start.g0
        self.constant[name] = ratio ** (2 * self.start.exponent)
        self.deviation[name] = deviation / self.constant[name]
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.scaled = name

    def project(self, name: str) -> None:
        """A learned linear map of the channels, which starts and is stored as the first one of the channel MLP."""
        setattr(self, name, nn.Linear(self.dim, self.dim, bias=False))
        self.deviation[f"{name}.weight"] = self.dim**-0.5

    def fix(self) -> None:
        """One factor that is not learned, for a mixer without weights; the start's rule sets it."""
        self.register_buffer("weight", torch.ones(1, 1))
        self.constant["weight"], self.scaled = 1.0, "weight"

    def value(self, name: str) -> Tensor:
        """The effective tensor."""
        return self.constant[name] * getattr(self, name)

    def mix(self, x_BHWC: Tensor) -> Tensor:
        """What the mixer does on the grid as it is."""
        raise NotImplementedError

    def linear(self, x_BHWC: Tensor) -> Tensor:
        """The part of `mix` that is one matrix M for each channel, at the start."""
        return self.mix(x_BHWC)

    def follow(self, state: State, relabeling: Relabeling) -> State | None:
        """The stored tensors as a new order of the patches wants them; None: no rule is known. Without `order`."""
        return state

    def macs(self) -> tuple[int, int]:
        """Nominal MACs, one for each weight of M and token that it reads, and those executed; of one image."""
        return 0, 0

    def spared(self) -> set[str]:
        """Names of tensors that weight decay spares."""
        return set()

    # --- what all do

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.mix(x_BHWC) if self.order is None else self._ordered(self.mix, x_BHWC)

    def _ordered(self, mix: Callable[[Tensor], Tensor], x_BHWC: Tensor) -> Tensor:
        """P^T M P: `mix` sees token order[i] in place i."""
        shuffled = x_BHWC.flatten(1, 2)[:, self.order].unflatten(1, self.grid)
        return mix(shuffled).flatten(1, 2)[:, self.order.argsort()].unflatten(1, self.grid)

    def scramble(self) -> None:
        """Let the tokens stand in another order, a buffer of the checkpoint."""
        self.order = torch.arange(self.num_tokens)

    def freeze(self) -> None:
        """Turn what is learned into buffers of the checkpoint."""
        for name in self.constant:
            value = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, value)

    @torch.no_grad()
    def draw(self, generator: torch.Generator, order: Tensor) -> None:
        """Start afresh.

        Args:
            generator: of this block's mixer, on the CPU.
            order: of the tokens, for a scrambled mixer.
        """
        if self.order is not None:
            self.order.copy_(order)
        held = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for name, deviation in self.deviation.items():
            value = held[name]
            value.copy_(deviation * torch.randn(value.shape, generator=generator, device="cpu"))
        if self.scaled is not None:
            held[self.scaled].mul_((self.target / self.mean_square()) ** 0.5)

    @torch.no_grad()
    def mean_square(self) -> float:
        """trace(M R M^T) / N, the mean over the channels, of `linear` as it is now."""
        twin = copy.deepcopy(self).to("cpu", torch.float64)
        with torch.device("cpu"):
            # Image b is the token b alone, so y[b, i, c] is the entry (i, b) of M of channel c.
            each = torch.eye(self.num_tokens, dtype=torch.float64)
            x_BHWC = each[..., None].expand(-1, -1, self.dim).unflatten(1, self.grid)
            y = (twin.linear(x_BHWC) if self.order is None else twin._ordered(twin.linear, x_BHWC)).flatten(1)
            return ((self.start.second_moment(self.grid) @ y) * y).sum().item() / (self.num_tokens * self.dim)

    def relabel(self, state: State, relabeling: Relabeling) -> State | None:
        """`follow`, or for a scrambled mixer the order that makes up for the new one of the patches."""
        if relabeling.tokens is None:
            return None
        if "order" in state:
            return {**state, "order": relabeling.tokens.argsort()[state["order"]]}
        return self.follow(state, relabeling)


class MatrixMixer(Mixer):
    """One matrix over the tokens per group of channels, written out from `weight` and applied as a product.

    Args:
        num_groups: of channels, contiguous; they must tile `dim`.
        shape: of the weights of one group.
        reads: mean number of tokens that a token reads.
    """

    def __init__(
        self, dim: int, grid: Grid, start: Start, num_groups: int, shape: tuple[int, ...], reads: float
    ) -> None:
        super().__init__(dim, grid, start)
        check_groups(dim, num_groups)
        self.reads, self.num_groups = reads, num_groups
        self.hold("weight", (num_groups, *shape), start.g0 * reads**-0.5)

    def matrices(self) -> Tensor:
        """(G, N, N), effective."""
        raise NotImplementedError

    def mix(self, x_BHWC: Tensor) -> Tensor:
        return places.product(self.matrices(), x_BHWC, self.num_groups)

    def macs(self) -> tuple[int, int]:
        return round(self.dim * self.num_tokens * self.reads), self.dim * self.num_tokens**2


def check_groups(dim: int, num_groups: int, argument: str = "groups") -> None:
    """Raises ValueError unless the groups tile the channels."""
    if dim % num_groups:
        raise ValueError(f"dim {dim} is not a multiple of {argument} {num_groups}")
