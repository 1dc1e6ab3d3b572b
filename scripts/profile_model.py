"""Parameters, MACs, FLOPs, and measured inference speed of models, in one run so that they can be compared."""

from pathlib import Path

from engine.cli import Parser, pairs, run_main, show
from engine.errors import Refusal


def main() -> None:
    parser = Parser(prog="scripts/profile_model.py", description=__doc__)
    parser.add_argument("model", nargs="*", help="family_variant or timm/NAME, several to compare")
    parser.add_argument("--model", dest="models", nargs="+", default=[], help="the same, as a flag")
    parser.add_argument("--model-kwargs", nargs="*", default=[], metavar="KEY=VALUE", help="for all of them")
    parser.add_argument("--img-size", type=int, help="pixels (default: the variant's own, timm: 224)")
    parser.add_argument("--in-chans", type=int, help="channels (default: the variant's own, timm: 3)")
    parser.add_argument("--num-classes", type=int, help="classes (default: the variant's own, timm: 1000)")
    parser.add_argument("-b", "--batch-size", type=int, default=64, help="for images/s; latency is at batch 1")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--no-speed", action="store_true", help="count only")
    parser.add_argument("--results-file", type=Path, help="also write the rows to this CSV")
    given = parser.parse()
    names = [*given.model, *given.models]
    if not names:
        raise Refusal("name at least one model; all: python scripts/list_models.py")

    import pandas as pd
    from rich.table import Table

    from engine.profile import measure, own_shape, profile
    from engine.run import make_how
    from engine.train import pick_device

    device = pick_device(make_how({"device": given.device}))
    shape = {"img_size": given.img_size, "in_chans": given.in_chans, "num_classes": given.num_classes}
    rows = []
    for name in names:
        try:
            full = {**own_shape(name), **{key: value for key, value in shape.items() if value is not None}}
            kwargs = pairs(given.model_kwargs, "--model-kwargs")
            row = {"model": name, "img_size": full["img_size"], **profile(name, **full, **kwargs)}
            if not given.no_speed:
                row |= measure(name, device, given.batch_size, given.amp, **full, **kwargs)
        except ValueError as error:
            raise Refusal(str(error)) from None
        rows.append(row)
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(
            *(f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values())
        )
    show(table)
    if given.results_file:
        pd.DataFrame(rows).to_csv(given.results_file, index=False)


if __name__ == "__main__":
    run_main(main)
