"""From a Run to trained weights: what decides a result is in run.py, what happens in train.py.

run          a run is a value with a signature; How is what must not change the result
errors       what a user can mend: one line and an exit code; whose fault the rest is
rng          randomness as a function of (seed, purpose, position)
train        one run from wherever it stands to its end, top to bottom
step         where a run stands, and one optimizer step: forward, backward, clip, step, moving average
models       the model of a run and its device; what cannot be built is refused early
optim        optimizer, schedule, loss and label mixing, by timm's factories
evaluate     loss, accuracy and predictions over exactly the samples of a loader
metrics      what predictions are worth
transfer     start from weights trained elsewhere
distributed  several processes that train one run
signals      a signal only sets a flag

fields/ what a run's fields may hold; data/ from images to batches; folder/ what a run leaves on disk;
pruning/ weights held at zero; cost/ parameters, MACs, memory, speed; cli/ how it is called;
recipes/ published settings as YAML

For Python: `from engine import Run, How, train_run`, loaded when they are asked for, so that importing this is nothing.
"""

import importlib
from typing import Any

_FACE = {"Run": "engine.run", "How": "engine.run", "train_run": "engine.cli.call"}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'engine' has no attribute '{name}'")
    return getattr(importlib.import_module(_FACE[name]), name)
