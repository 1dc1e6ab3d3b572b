"""Evaluate what a run left behind (last.pth.tar, model_best.pth.tar) on the validation split of its data set."""

from pathlib import Path

from engine.cli import Parser, add_fields, run_main
from engine.errors import CHECKPOINT, Refusal
from engine.run import How, make_how, make_run


def main() -> None:
    parser = Parser(prog="scripts/validate.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="last.pth.tar or model_best.pth.tar of a run, or its folder")
    parser.add_argument("--results-file", type=Path, help="also append the figures to this CSV")
    add_fields(parser, How, only=("data_dir", "device", "loader", "workers", "threads"))
    given = vars(parser.parse())
    path, results_file = given.pop("checkpoint"), given.pop("results_file")
    how = make_how(given)
    path = path / "last.pth.tar" if path.is_dir() else path

    import functools

    import torch

    from engine import checkpoint, data
    from engine.evaluate import evaluate
    from engine.train import create, pick_device

    record = checkpoint.read(path)
    if "args" not in record:
        raise Refusal(f"{path} is not the weights of a run of ours (no 'args' in it)", CHECKPOINT)
    run, device = make_run(record["args"], where=str(path)), pick_device(how)
    if how.threads:
        torch.set_num_threads(how.threads)
    _, loader, facts = data.make_loaders(run, how)
    mean, std = data.channel_statistics(run, facts)
    model = create(run, facts["num_classes"], len(mean)).to(device)
    model.load_state_dict(record["state_dict"])
    autocast = functools.partial(torch.autocast, device.type, getattr(torch, run.amp_dtype), enabled=run.amp)
    prepare = data.Normalize(mean, std, device)
    result = evaluate(model, loader, prepare, autocast)
    row = {"model": run.rung, "dataset": run.dataset, "samples": loader.num_samples, **result}
    print(
        "  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    )
    if results_file:
        import pandas as pd

        pd.DataFrame([row]).to_csv(results_file, mode="a", header=not results_file.exists(), index=False)


if __name__ == "__main__":
    run_main(main)
