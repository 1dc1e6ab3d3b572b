"""How many threads or processes one command may start: more than this crash a machine and help none."""

import os

PER_CORE, AT_LEAST = 16, 256


def startable(count: int) -> int:
    """The count itself. Raises ValueError for more than 16 per core of this machine, or 256 where that is more.

    torch ends in a segmentation fault, without a word, where it is told to start 100,000 threads.
    """
    cores = os.cpu_count() or 1
    most = max(AT_LEAST, PER_CORE * cores)
    if count > most:
        raise ValueError(f"more than this machine can start: it has {cores} cores, and {most} is the most")
    return count
