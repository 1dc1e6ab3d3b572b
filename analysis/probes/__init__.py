"""Probes: what bias a model has. The name is the address: probe `shift` is `shift.py` of this folder.

A probe that runs on a trained run is a file with four things, and analysis/bias/probe.py does the rest:

    PROTOCOL                      the settings that decide its numbers, kept with them
    UNITS                         of its keys; `#` stands for a number in a key
    HEADLINE                      the keys that a table shows
    measure(subject) -> {key: Estimate}      value, null and interval, from a model and its test images

Its docstring says the question, the formula, the source, what to expect and what it costs. It is a pure function of the
model and the images: on random weights it measures what the architecture is forced to be.
`permutation_gap` compares finished runs; `equivariance` and `receptive_field` want random weights in float64.
"""

import re
from pathlib import Path


def names() -> list[str]:
    """Probes that run on a trained run, sorted; found without importing any of them."""
    paths = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in paths if re.search(r"^PROTOCOL\b", path.read_text(), re.MULTILINE))
