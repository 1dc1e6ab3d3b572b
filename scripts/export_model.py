"""Write trained weights as a folder that timm reads: model.safetensors and config.json.

    python scripts/export_model.py RUN --output FOLDER

    timm.create_model("local-dir:FOLDER", pretrained=True)    # after import archs.timm_zoo

config.json says what timm's transforms need: the size of the image, the run's mean and deviation, a crop of the centre
square. The other way round needs no command: validate.py, finetune.py and --initial-checkpoint read model.safetensors.
"""

import argparse
from pathlib import Path
from typing import Any

from engine.cli.flags import Parser, add_fields, run_main
from engine.errors import CHECKPOINT, OUTPUT, Refusal
from engine.run import How, Run, make_how, make_run


def main() -> None:
    given = parse()
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})

    from safetensors.torch import save
    from timm.models._hub import save_config_for_hf

    from engine import transfer
    from engine.data import normalize
    from engine.folder.store import write_bytes

    path = transfer.file_of(given.checkpoint)
    record = transfer.read(path)
    run = run_of(path, record.get("args"))
    facts = facts_of(run, how)
    mean, std = normalize.channel_statistics(run, facts)
    model = built(run, record["num_classes"], len(mean))
    transfer.load_weights(path, run, model, record["num_classes"], len(mean), new_head=False)
    try:
        given.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"--output {given.output} cannot be made: {error.strerror}", OUTPUT) from None
    state = model.state_dict()
    if copies := len(state) - len({tensor.data_ptr() for tensor in state.values()}):
        print(f"{copies} tensors that blocks share are written once for each: safetensors has no shared ones")
    # Validation images are centre squares, shrunk to the size of the model: timm's crop_pct of 1.
    seen = {"mean": [m / 255 for m in mean], "std": [s / 255 for s in std], "crop_pct": 1.0}
    names = {"label_names": facts["classes"]} if facts.get("classes") else {}
    save_config_for_hf(model, given.output / "config.json", names, data_config={**seen, "interpolation": "bilinear"})
    weights = save({key: tensor.clone().contiguous() for key, tensor in state.items()}, {"format": "pt"})
    write_bytes(given.output / "model.safetensors", weights)
    print(f'timm.create_model("local-dir:{given.output}", pretrained=True), after import archs.timm_zoo')


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/export_model.py", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or its last.pth.tar or model_best.pth.tar")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="made where it is not there")
    add_fields(parser, How, only=("data_dir",))
    return parser.parse()


def run_of(path: Path, args: Any) -> Run:
    """The run that left these weights. Raises Refusal for any other file, and where timm could not feed the model."""
    if not isinstance(args, dict) or "model" not in args:
        raise Refusal(f"{path} is not the weights of a run of ours", CHECKPOINT)
    wanted = ("model", "model_kwargs", "dataset", "img_size", "stored_size", "seed", "permute")
    run = make_run({key: args[key] for key in wanted if key in args}, where=str(path))
    if run.permute != "none":
        raise Refusal(f"{path} was trained on images with permuted {run.permute}, which timm does not give it")
    return run


def facts_of(run: Run, how: How) -> dict[str, Any]:
    """What the JSON beside the training file says; {} for a data set of the table, which needs no file."""
    from engine.data import beton, sets

    if sets.lookup(run.dataset):
        return {}
    path = beton.path_of(run.dataset, "train", run.stored, how.data_dir)
    if facts := beton.read_facts(path):
        return facts
    raise Refusal(f"{beton.sidecar(path)}, which has the statistics of {run.dataset}, is not there; name --data-dir")


def built(run: Run, num_classes: int, in_chans: int) -> Any:
    """The run's model, made by timm's create_model, which notes for the folder how."""
    import timm

    from archs import timm_zoo
    from engine.models import create

    if run.model.startswith("timm/"):
        return create(run, num_classes, in_chans)
    given = {"img_size": run.img_size, "num_classes": num_classes, "in_chans": in_chans, **run.model_kwargs}
    return timm.create_model(timm_zoo.PREFIX + run.model, **given)


if __name__ == "__main__":
    run_main(main)
