"""Fine-tune weights on another data set: train.py with --initial-checkpoint, --mode and a preset beneath the flags.

--mode full trains everything, the body at a tenth of the head's learning rate; --mode linear trains the head alone on
what the frozen body gives. The preset is the recipe of Scaling MLPs for that mode (engine/recipes/scaling_mlps_*.yaml)
without its model and data; -c replaces it. Weights of a run of ours name their model themselves. Everything else,
resuming and the run's folder too, is as train.py says.
"""

from pathlib import Path
from typing import Any

from engine.cli.console import add_flags, train_here
from engine.cli.flags import Parser, collect, find_config, run_main
from engine.errors import Refusal
from engine.run import read_yaml

PRESETS = {"full": "scaling_mlps_finetune", "linear": "scaling_mlps_linear"}
NOT_PRESET = ("model", "dataset", "img_size")


def main() -> None:
    parser = Parser(prog="scripts/finetune.py", description=__doc__.splitlines()[0])
    add_flags(parser)
    given = parser.parse()
    config = read_yaml(given.config) if "config" in given else {}
    source = vars(given).get("initial_checkpoint", config.get("initial_checkpoint"))
    if source is None:
        raise Refusal("say which weights to start from: --initial-checkpoint FILE, or the folder of a run")
    below = config or preset(vars(given).get("mode", "full"))
    if "model" not in given and "model" not in config:
        below = {**below, **model_of(Path(source))}
    for key, value in below.items():
        if key not in given and key not in config:
            setattr(given, key, value)
    train_here(given, *collect(given))


def preset(mode: str) -> dict[str, Any]:
    """The recipe of a mode, without what it is tuned on. An unknown mode is left to the validation."""
    fields = read_yaml(find_config(PRESETS.get(mode, PRESETS["full"])))
    return {key: value for key, value in fields.items() if key not in NOT_PRESET}


def model_of(source: Path) -> dict[str, Any]:
    """The model that weights of a run of ours were trained as, as its flags. Raises Refusal for any other file."""
    from engine import transfer

    args = transfer.read(transfer.file_of(source)).get("args")
    if not isinstance(args, dict) or "model" not in args:
        raise Refusal(f"{source} does not say which model it is of; give --model and, if it has any, --model-kwargs")
    return {"model": args["model"], "model_kwargs": [f"{key}={value}" for key, value in args["model_kwargs"].items()]}


if __name__ == "__main__":
    run_main(main, prints=False)
