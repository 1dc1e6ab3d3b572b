"""List the zoo: names that match a shell pattern, with parameters and MACs where --cost is given."""

from engine.cli.flags import Parser, run_main, show
from engine.errors import Refusal


def main() -> None:
    parser = Parser(prog="scripts/list_models.py", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'mixer*'; quote it")
    parser.add_argument("--cost", action="store_true", help="also parameters and MACs at the variant's own image size")
    given = parser.parse()

    import archs

    names = archs.list_archs(given.pattern)
    if not names:
        raise Refusal(f"no model matches '{given.pattern}'; families: {', '.join(archs.families())}")
    if not given.cost:
        print("\n".join(names))
        return
    from rich.table import Table

    from engine.cost.profile import profile

    table = Table("model", "image")
    for header in ("parameters", "MACs"):
        table.add_column(header, justify="right")
    for name in names:
        own = archs.arguments(name)
        shape = {"img_size": own["img_size"], "in_chans": own.get("in_chans", 3), "num_classes": own["num_classes"]}
        cost = profile(name, **shape)
        table.add_row(name, f"{own['img_size']} px", f"{cost['params']:,}", f"{cost['macs']:,}")
    show(table)


if __name__ == "__main__":
    run_main(main)
