"""The report of a sweep: one page in one file that loads nothing, the same bytes for the same runs.

It opens with the result in three sentences, which are computed: the best rung, the largest gain on the ladder that is
not chance, and what is not decided.
"""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup, escape

from analysis import compare, figures, ladder
from analysis.compare import MISSING, REFERENCE, gain_text, plus_minus, quantity
from engine.datasets import DATASETS
from engine.errors import Refusal
from engine.run import Run, make_run
from engine.store import DONE, write_bytes

PACKAGES = ("python", "torch", "torchvision", "timm", "ffcv", "numpy", "numba")
UNSTEADY = 5  # points between the best and the worst seed of a rung beyond which its mean says little
MACHINE = ("processor", "device", "threads")


def write_report(
    name: str, folders: Sequence[Path], results: Path, question: str = "", runs: Sequence[Run] | None = None
) -> Path:
    """Write RESULTS/NAME/report.html from the runs' folders, its figures beside it, and return its path.

    Args:
        name: of the sweep.
        folders: of its runs, in the order of the ladder.
        question: what the sweep asks; the page's title.
        runs: the runs of these folders, where known; see `compare.load`.

    Raises:
        Refusal: there are no runs, or the page cannot be written.
    """
    if not folders:
        raise Refusal(f"sweep {name} has no runs")
    frame = compare.load(folders, runs)
    table = ladder.table(compare.rungs(frame))
    drawn = _figures(frame, table)
    page = _template().render(
        name=name,
        question=question,
        result=result(frame, table),
        states=", ".join(f"{count} {state}" for state, count in frame["state"].value_counts(sort=False).items()),
        total=len(frame),
        header=compare.HEADER,
        rows=_rows(table),
        ladder=[(row, gain_text(row), plus_minus(row.acc1, row.acc1_half, row.n)) for row in table.itertuples()],
        claims=ladder.WORDS,
        note=compare.NOTE,
        exports={
            "Markdown": compare.markdown(table),
            "LaTeX": compare.latex(table),
            "CSV": compare.table_csv(table[compare.RUNG_COLUMNS]),
        },
        figures={key: Markup(svg) for key, svg in drawn.items()},
        palette=[figures.css(dark) for dark in (False, True)],
        colours=figures.colours(table["family"]),
        unfinished=[_unfinished(row) for row in frame[frame["acc1"].isna()].itertuples()],
        runs=[_run(row) for row in frame.itertuples()],
        commands=commands(frame),
        environment=environment(frame),
        quantity=quantity,
    )
    path = results / name / "report.html"
    try:
        (path.parent / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"cannot create {path.parent}: {error.strerror}; set SOFTMLP_RESULTS") from None
    for key, svg in drawn.items():
        write_bytes(path.parent / "figures" / f"{key}.svg", figures.standalone(svg).encode())
    write_bytes(path, page.encode())
    return path


def result(frame: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    """The result in three statements, under what each is about."""
    if not (table["n"] > 0).any():
        return {"No result": "No run of this sweep has finished.", "Not decided": " ".join(_undecided(frame, table))}
    return {
        "Best rung": _best(frame, table),
        "Largest gain": _largest_gain(table),
        "Not decided": " ".join(_undecided(frame, table)),
    }


def _best(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    ranked = table[table["n"] > 0].sort_values("acc1", ascending=False, kind="stable")
    best, own = ranked.iloc[0], ranked[ranked["family"] != REFERENCE]
    seeds = f"mean of {best.n} seeds, 95 % interval" if best.n > 1 else "one seed, so no interval"
    text = f"The most accurate rung is `{best.rung}` with {_level(best)} ({seeds})"
    if len(ranked) < 2:
        return f"{text}; no other rung has finished."
    second = ranked.iloc[1]
    lead = compare.paired(frame, best.rung, second.rung)
    margin = plus_minus(lead.mean, lead.half, lead.n)
    if lead.n < 2:
        text += f"; next is `{second.rung}`, but they share too few seeds to tell the two apart."
    elif lead.clear:
        text += f", ahead of `{second.rung}` by {margin} points over the same seeds."
    elif lead.half == 0:
        text += f"; its lead over `{second.rung}` is {lead.mean:.2f} points with each seed, too coarse for an interval."
    else:
        text += f", but its lead over `{second.rung}`, {margin} points over the same seeds, may be chance."
    if best.family == REFERENCE and len(own):
        text += f" It is a reference; of the testbed’s own, `{own.iloc[0].rung}` is best with {_level(own.iloc[0])}."
    return text


def _level(row: Any) -> str:
    return plus_minus(row.acc1, row.acc1_half, row.n).replace(" (n=1)", "") + " %"


def _largest_gain(table: pd.DataFrame) -> str:
    steps = table[(table["before"] != "") & (table["family"] != REFERENCE) & table["gain"].notna()]
    if steps.empty:
        return "There is no step to judge: no two neighbouring rungs of the ladder have finished a common seed."
    if (steps["gain_n"] < 2).all():
        return "No gain on the ladder can be told from chance: its neighbours share one seed each."
    clear = steps[steps["gain_clear"]]
    gains, losses = clear[clear["gain"] > 0], clear[clear["gain"] < 0]
    if gains.empty:
        none = f"None of the {len(steps)} steps" if len(steps) > 1 else "The one step"
        text = f"{none} on the ladder is {'a' if len(steps) > 1 else 'not a'} gain whose 95 % interval excludes zero"
        if losses.empty:
            return text + "."
        row = losses.sort_values("gain").iloc[0]
        return f"{text}; the step from `{row.before}` to `{row.rung}` loses {_size(row)} points{_holm(row, table)}."
    row = gains.sort_values("gain", ascending=False, kind="stable").iloc[0]
    what = f", which changes {_listed([ladder.WORDS[claim] for claim in row.changed])}" if row.changed else ""
    return (
        f"The largest gain on the ladder whose interval excludes zero is {_size(row)} points, at the step from "
        f"`{row.before}` to `{row.rung}`{what}{_holm(row, table)}."
    )


def _size(row: Any) -> str:
    return plus_minus(abs(row.gain), row.gain_half, row.gain_n)


def _holm(row: Any, table: pd.DataFrame) -> str:
    tested = int(table["gain_p"].notna().sum())
    if tested < 2:
        return ""
    verdict = "survives" if row.gain_p_holm < 0.05 else "does not survive"
    return f"; it {verdict} Holm’s correction for {tested} steps (p = {row.gain_p_holm:.2g})"


def _undecided(frame: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What these runs do not show, most important first."""
    notes = []
    missing, few = int(frame["acc1"].isna().sum()), table.loc[table["n"] > 0, "n"]
    if missing:
        notes.append(f"{missing} of {len(frame)} runs have no result yet or failed; they are listed below.")
    if len(few) and few.max() == 1:
        notes.append("With one seed per rung nothing is known of the spread between seeds.")
    elif len(few) and few.min() < 5:
        how_many = f"{few.min()} to {few.max()}" if few.min() < few.max() else f"{few.min()}"
        notes.append(
            f"With {how_many} seeds per rung only differences of several times the spread between seeds can be shown."
        )
    reach = frame.groupby("rung", sort=False)["acc1"].agg(lambda values: values.max() - values.min())
    if unsteady := [f"`{rung}`" for rung in reach.index[reach > UNSTEADY]]:
        notes.append(
            f"The seeds of {_listed(unsteady)} lie more than {UNSTEADY} points apart: what is measured there may be "
            "how well the recipe suits the model, and not its bias."
        )
    if "digits" in set(frame["dataset"]):
        notes.append(
            "Digits are too easy to rank architectures: trained to the end, the flat MLP ties with nearly every other "
            "one, so ranks must not be over-read."
        )
    for dataset, group in frame.dropna(subset="acc1").groupby("dataset", sort=False):
        if dataset in DATASETS:
            size, share = DATASETS[dataset].val_size, group.groupby("rung")["acc1"].mean() / 100
            errors = (100 * (share * (1 - share) / size) ** 0.5).agg(["min", "max"])
            error = " to ".join(dict.fromkeys(f"{value:.1f}" for value in errors))
            notes.append(
                f"The intervals are over seeds only: the {size:,} test images of {dataset} add a standard error of "
                f"{error} points to an accuracy."
            )
    for key, what in (("commit", "commits"), ("processor", "kinds of processor"), ("threads", "thread counts")):
        values = _values(frame, key)
        if len(values) > 1:
            effect = "" if key == "commit" else ", so images/s are not comparable"
            notes.append(f"The runs come from {len(values)} {what}{effect}.")
    return notes or ["Only seeds were varied: the intervals say nothing of other recipes or data."]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _rows(table: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """Cells of the table of rungs: text and the value to sort by, empty for missing; a rung has its place."""
    keys = ["place", "family", "params", "macs", "images_per_s", "n", "acc1", "gain"]
    table = table.assign(place=range(len(table)))
    values = table[keys].astype(object).where(table[keys].notna(), "").to_numpy().tolist()
    return [
        [(text, str(value)) for text, value in zip(row, numbers, strict=True)]
        for row, numbers in zip(compare.cells(table), values, strict=True)
    ]


def _figures(frame: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    if not (table["n"] > 0).any():
        return {}
    return {
        "ladder": figures.ladder(table, frame),
        "macs": figures.accuracy_macs(table),
        "params": figures.accuracy_params(table),
        "curves": figures.learning_curves(compare.curves(frame), table["family"]),
    }


def _unfinished(row: Any) -> dict[str, str]:
    epoch = f"{row.epoch:.0f} of {row.epochs:.0f}" if row.epoch >= 0 and row.epochs >= 0 else MISSING
    state = "no accuracy" if row.state == DONE else row.state
    return {
        **{"signature": row.signature, "rung": row.rung, "seed": _whole(row.seed), "state": state},
        **{"epoch": epoch, "class": row.error_class or MISSING, "error": row.error or MISSING},
    }


def _run(row: Any) -> dict[str, str]:
    return {
        **{"signature": row.signature, "rung": row.rung, "seed": _whole(row.seed), "state": row.state},
        "accuracy": plus_minus(row.acc1, math.nan, 0 if math.isnan(row.acc1) else 1).replace(" (n=1)", ""),
        "images": MISSING if math.isnan(row.images_per_s) else f"{row.images_per_s:,.0f}",
        "seconds": MISSING if math.isnan(row.seconds) else f"{row.seconds:,.0f}",
        "commit": str(row.env.get("commit", MISSING))[:9],
    }


def _whole(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.0f}"


def commands(frame: pd.DataFrame) -> list[str]:
    """Per rung, the command that trains it, for all its seeds."""
    result = []
    known = frame[frame["batch_size"].notna()]
    for _, group in known.groupby("rung", sort=False):
        run = make_run(_fields(group.iloc[0]))
        threads = {env["threads"] for env in group["env"] if "threads" in env}
        words = command(run) + (f" --threads {threads.pop()}" if len(threads) == 1 else "")
        seeds = [f"{seed:.0f}" for seed in group["seed"]]
        if len(seeds) == 1:
            result.append(f"{words} --seed {seeds[0]}")
        else:
            result.append(f"for seed in {' '.join(seeds)}; do {words} --seed $seed; done")
    return result


def _fields(row: pd.Series) -> dict[str, Any]:
    """The Run of a row: pandas makes a missing value NaN and a count beside it a float."""
    given = {key: row[key] for key in Run.model_fields}
    return {key: value for key, value in given.items() if not (isinstance(value, float) and math.isnan(value))}


def command(run: Run) -> str:
    """`python scripts/train.py` with the flags of what differs from the defaults, the seed left out."""
    words = ["python", "scripts/train.py", "--model", run.model]
    dataset = DATASETS.get(run.dataset)
    for key, value in run.record().items():
        if key in ("model", "seed") or getattr(run, key) == Run.model_fields[key].default:
            continue
        if key == "img_size" and dataset and value == dataset.img_size:
            continue
        flag = f"--{key.replace('_', '-')}"
        if key == "model_kwargs":
            words += [flag, *(f"{name}={_yaml(argument)}" for name, argument in value.items())]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _yaml(value: Any) -> str:
    """A value as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def environment(frame: pd.DataFrame) -> dict[str, str]:
    """Commit, versions and machine, with all values that occur; what no run recorded is left out."""
    return {key: ", ".join(values) for key in ("commit", *PACKAGES, *MACHINE) if (values := _values(frame, key))}


def _values(frame: pd.DataFrame, key: str) -> list[str]:
    return list(dict.fromkeys(str(env[key]) for env in frame["env"] if env.get(key) not in (None, "")))


def _prose(text: str) -> Markup:
    """Text with `code`; a number stays in one line with its sign and unit."""
    escaped = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(" (?=[±%])|(?<=±) ", "\u00a0", escaped))


def _hang(text: str) -> Markup:
    """A number whose star hangs into the margin, so that columns stay aligned."""
    return Markup(str(escape(text)).replace("*", '<span class="star">*</span>'))


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, **options)
    environment.filters |= {"prose": _prose, "hang": _hang}
    return environment.get_template("report.html.j2")
