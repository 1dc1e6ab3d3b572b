"""A sweep with other seeds than its file has: `demo@0-9` is demo, each of its runs once for every seed from 0 to 9.

The name is the address, as that of the file is: what is launched under it is looked at, collected and reported under
it, in a folder of its own. Runs are what they are, so those that demo has trained already are not trained again.
"""

import re
from collections.abc import Collection, Sequence

from engine.errors import Refusal
from engine.run import Run

MARK = "@"
MOST = 10_000
_PART = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")


def parse(text: str) -> tuple[int, ...]:
    """`0-4,7` or, as in a name, `0-4_7`: ascending, each once. Raises Refusal for what is no list of seeds."""
    seeds: set[int] = set()
    for part in re.split("[,_]", text):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last >= 2**32 or last - first >= MOST:
            raise Refusal(f"'{text}' is no list of seeds; write 0-9, or 0,1,5-7")
        seeds.update(range(first, last + 1))
    return tuple(sorted(seeds))


def told(seeds: Sequence[int]) -> str:
    """The one spelling of ascending seeds in a name: 0-4_7."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return "_".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def replaced(runs: Collection[Run], seeds: Sequence[int]) -> list[Run]:
    """Each of these runs, whatever its seed is, with every one of the seeds, which vary slowest.

    Raises Refusal where a run starts from the weights of another: which one it would be for a new seed is not known.
    """
    known = {f"run:{run.signature}" for run in runs}
    if any(run.initial_identity in known for run in runs):
        raise Refusal("its runs start from the weights of others among them, so its file alone can give them new seeds")
    cells = {run.but(seed=0).signature: run for run in runs}
    return [run.but(seed=seed) for seed in seeds for run in cells.values()]
