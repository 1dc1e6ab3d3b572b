"""What results/LOG.md says of studies, from their committed tables: by the code of the project and by others alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from analysis.compare import contrasts, frames
from analysis.factorial import families
from analysis.probes import permutation_gap
from slurm.define.load import load

RESULTS = Path(__file__).parents[2] / "results"
TABLE = pd.read_csv(RESULTS / "ladder/runs.csv")
LOG = (RESULTS / "LOG.md").read_text()


RUNGS = list(dict.fromkeys(TABLE["rung"]))
SHUFFLED = list(dict.fromkeys(TABLE.loc[TABLE["permute"] == "pixels", "rung"]))
# In the order of the table: the rungs of 5 MMAC, then the flat ones of as many parameters. The sweep is gone.
FLAT, BMLP, UNSHARED, SHARED, _, _, _, RESMLP, MIXER, GMLP, VIP, _, BANDED, TOEPLITZ, BOTH, _, CONV, DEIT = SHUFFLED
BASELINE = (FLAT, RUNGS[len(SHUFFLED)])
CONTRASTS = {
    "bottleneck blocks: mlp to bmlp": {BMLP: 1, FLAT: -1},
    "patches: bmlp to unshared patchmlp": {UNSHARED: 1, BMLP: -1},
    "the same weights for all patches: unshared to shared patchmlp": {SHARED: 1, UNSHARED: -1},
    "mixing tokens and channels in turn: patchmlp to resmlp": {RESMLP: 1, SHARED: -1},
    "an MLP across tokens: resmlp to mixer": {MIXER: 1, RESMLP: -1},
    "gating: resmlp to gmlp": {GMLP: 1, RESMLP: -1},
    "rows and columns: resmlp to vip": {VIP: 1, RESMLP: -1},
    "locality alone: resmlp to banded": {BANDED: 1, RESMLP: -1},
    "sharing alone: resmlp to toeplitz": {TOEPLITZ: 1, RESMLP: -1},
    "sharing where there is locality: banded to bandedtoeplitz": {BOTH: 1, BANDED: -1},
    "locality where there is sharing: toeplitz to bandedtoeplitz": {BOTH: 1, TOEPLITZ: -1},
    "a kernel per channel: bandedtoeplitz to convmixer": {CONV: 1, BOTH: -1},
    "weights from the image: resmlp to deit": {DEIT: 1, RESMLP: -1},
    "locality x sharing": {BOTH: 1, BANDED: -1, TOEPLITZ: -1, RESMLP: 1},
}


@pytest.fixture(scope="module")
def frame():
    """The table in the form of `frames.load`, which its rows are too old for."""
    table = TABLE.reindex(columns=frames.COLUMNS)
    for column in ("folder", "signature", "rung", "model", "seed", "permute", "acc1", "state", "params", "macs"):
        assert table[column].notna().all(), column
    table["name"], table["condition"] = table["rung"], "permute=" + table["permute"]
    table["rung"] = table["name"] + " " + table["condition"]
    table["data"], table["pair"] = table["permute"], table["seed"].astype(str)
    table["family"], table["table"], table["equivalent"] = table["model"].str.partition("_")[0], "", None
    table["model_kwargs"] = TABLE["model_kwargs"].map(json.loads)
    return table


def holm(p):
    """Step by step, as its definition has it."""
    order, adjusted, highest = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(p) - rank) * p[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


def seeds(rung, permute):
    rows = TABLE[(TABLE["rung"] == rung) & (TABLE["permute"] == permute)]
    return rows.sort_values("seed")["acc1"].to_numpy()


def test_permutation_gaps_are_corrected_over_the_eighteen_rungs(frame):
    gaps = [seeds(rung, "none")[:3] - seeds(rung, "pixels") for rung in SHUFFLED]
    p = holm([stats.ttest_1samp(gap, 0).pvalue for gap in gaps])
    sides = [
        (stats.ttest_1samp(g, -0.5, alternative="greater"), stats.ttest_1samp(g, 0.5, alternative="less")) for g in gaps
    ]
    same = holm([max(side.pvalue for side in both) for both in sides])
    table = permutation_gap.table(frame)
    assert len(table) == 18 and table["p_holm"].tolist() == pytest.approx(p)
    assert table["p_same_holm"].tolist() == pytest.approx(same)
    assert same[0] == pytest.approx(0.0119, abs=5e-5) and "p 0.012 after Holm over 18" in LOG
    assert same[1] == pytest.approx(0.697, abs=5e-4) and "(not shown, p 0.70)" in LOG
    survive = [rung.split("_")[0] for rung, value in zip(SHUFFLED, p, strict=True) if value < 0.05]
    assert survive == ["resmlp", "banded", "toeplitz", "convmixer"]


def test_on_shuffled_images_four_rungs_are_decided_that_one_family_left_open(frame):
    table = contrasts.against(frame, BASELINE).set_index("rung")
    apart, together = {}, {}
    for permute, rungs in (("none", RUNGS[1:]), ("pixels", SHUFFLED[1:])):
        p = [stats.ttest_rel(seeds(rung, permute), seeds(RUNGS[0], permute)).pvalue for rung in rungs]
        own = dict(zip([f"{rung} permute={permute}" for rung in rungs], p, strict=True))
        apart |= dict(zip(own, holm(p), strict=True))
        together |= own
    together = dict(zip(together, holm(list(together.values())), strict=True))
    assert table.loc[list(apart), "diff_p_holm"].to_dict() == pytest.approx(apart)
    flipped = [rung for rung in apart if (apart[rung] < 0.05) != (together[rung] < 0.05)]
    assert [rung.split("_")[0] for rung in flipped] == ["bmlp", "gmlp", "vip", "toeplitz"]
    assert all("pixels" in rung and table.at[rung, "verdict"] in ("better", "worse") for rung in flipped)
    assert {f"{apart[rung]:.4f}" for rung in flipped} == {"0.0499"} and "0.0499" in LOG
    assert {f"{together[rung]:.3f}" for rung in flipped} == {"0.061", "0.062"}


def test_contrasts_decided_on_whole_and_on_shuffled_images(frame):
    table = contrasts.registered(frame, CONTRASTS).set_index("contrast")
    for permute, decided in (("none", 7), ("pixels", 3)):
        p = []
        for weights in CONTRASTS.values():
            count = min(len(seeds(rung, permute)) for rung in weights)
            total = sum(weight * seeds(rung, permute)[:count] for rung, weight in weights.items())
            p.append(stats.ttest_1samp(total, 0).pvalue)
        own = table[table["condition"] == f"permute={permute}"]
        assert own["diff_p_holm"].tolist() == pytest.approx(holm(p))
        assert (own["diff_p_holm"] < 0.05).sum() == decided


def test_probes_of_the_ladder():
    probes = pd.read_csv(RESULTS / "ladder/probes.csv")
    probes = probes[(probes["permute"] == "none") & (probes["probe"] == "shift")]
    means = probes.groupby(["key", "rung"])["value"].mean()
    flat = means["peak"].index.str.startswith("patchmlp")
    ends = [means["peak"][part].agg(["min", "max"]).round(1).tolist() for part in (flat, ~flat)]
    assert ends == [[-0.3, -0.0], [0.3, 3.1]]
    assert "see no peak at a patch (-0.3 to 0.0), models on tokens do (0.3 to 3.1)" in re.sub(r"\s+", " ", LOG)
    mixing = ("resmlp", "mixer", "gmlp", "vip", "cyclemlp", "banded", "toeplitz", "gfnet")
    moved = means["acc_8"][means["acc_8"].index.str.startswith(mixing)]
    assert (round(moved.min()), round(moved.max())) == (36, 41) and "token mixing to 36 to 41 %" in re.sub(
        r"\s+", " ", LOG
    )
    parameters = TABLE.drop_duplicates("rung").set_index("rung")["params"] / 0.31e6
    assert parameters[parameters.index.str.startswith("vip")].iloc[0] == pytest.approx(1.121, abs=5e-4)


# --- studies with families of claims: every effect from runs.csv, by statsmodels ---


def entry(name):
    """What the log says of a study."""
    return LOG[LOG.index(f"\n## {name}: ") :].partition("\n\n## ")[0] + "\n"


def study(name, monkeypatch, place):
    """Rows of runs.csv, and what the project makes of the committed tables, by family."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(place))
    sweep = load(name)
    frame = frames.of_sweep(sweep)
    found = {family: families.table(frame, asked).set_index("contrast") for family, asked in sweep.families.items()}
    rows = pd.read_csv(RESULTS / name / "runs.csv")
    rows["rung"] = rows["signature"].map(frame.set_index("signature")["rung"])  # with what tells it from its kin
    return rows, sweep, found


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")  # seeds within either kind of images
@pytest.mark.parametrize("name", ["gap_closed", "lattice", "lattice_gap", "lattice_old"])
def test_effects_of_a_committed_study_are_those_of_statsmodels(name, monkeypatch, tmp_path):
    rows, sweep, found = study(name, monkeypatch, tmp_path)
    blocks = "C(seed):C(permute)" if rows["permute"].nunique() > 1 else "C(seed)"  # seeds of either kind of images
    model = smf.ols(f"acc1 ~ 0 + C(rung) + {blocks}", rows).fit()
    for family, asked in sweep.families.items():
        tests, equal = [], []
        for contrast in asked.contrasts.values():
            row = [contrast.weights.get(key[8:-1], 0) if key.startswith("C(rung)") else 0 for key in model.params.index]
            assert np.count_nonzero(row) == len(contrast.weights)
            tests.append(model.t_test(row))
            sides = [
                (model.t_test((row, side)).tvalue[0, 0], sign)
                for side, sign in ((-asked.margin, 1), (asked.margin, -1))
            ]
            equal.append(max(stats.t.sf(sign * value, model.df_resid) for value, sign in sides))
        own = found[family]
        assert own["diff"].tolist() == pytest.approx([test.effect[0] for test in tests])
        assert own[["low", "high"]].to_numpy() == pytest.approx(np.array([test.conf_int()[0] for test in tests]))
        many = [test.conf_int(0.05 / len(tests))[0] for test in tests]
        assert own[["all_low", "all_high"]].to_numpy() == pytest.approx(np.array(many))
        assert own["p_holm"].tolist() == pytest.approx(holm([float(test.pvalue) for test in tests]))
        assert own["equal_p_holm"].tolist() == pytest.approx(holm(equal))


def test_the_table_of_the_old_step_in_the_log(monkeypatch, tmp_path):
    ((table,),) = [study("lattice_old", monkeypatch, tmp_path)[2].values()]
    section = entry("lattice_old")
    told = re.findall(r"^  \| [^|]+ \| ([+-]\d\.\d) \| (-?\d\.\d) to (\d\.\d) \| ([<.\d ]+) \|$", section, re.MULTILINE)
    p = ["< 0.001" if value < 0.001 else f"{value:.3f}" for value in table["p_holm"]]
    made = [
        (f"{row.diff:+.1f}", f"{row.low:.1f}", f"{row.high:.1f}", own)
        for row, own in zip(table.itertuples(), p, strict=True)
    ]
    assert told == made[:8] and "whole step is {} ({} to {})".format(made[8][0][1:], *made[8][1:3]) in section.replace(
        "\n ", ""
    )


def test_the_tables_of_the_lattice_in_the_log(monkeypatch, tmp_path):
    """All edges and pairs; the cube's effects and what it says of seeds and training images in words."""
    rows, _, found = study("lattice", monkeypatch, tmp_path)
    section = entry("lattice")
    told = re.findall(r"^  \| (\w+): (.+) \| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \| (\w+) \|$", section, re.MULTILINE)
    made = []
    for row in pd.concat([found["edges"], found["pairs"]]).reset_index().itertuples():
        ends = f"{row.low:.1f} to {row.high:.1f}", f"{row.all_low:.1f} to {row.all_high:.1f}"
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        made.append((row.of, row.contrast, f"{row.diff:+.1f}", *ends, p, f"{row.loss:+.2f}", row.verdict.split()[0]))
    assert len(told) == 22 and told == made
    cube = found["cube"]["diff"].round(1)
    words = re.sub(r"\s+", " ", section)
    assert "(reach {}, places {}, channels {})".format(*cube.iloc[:3]) in words
    told = "(reach x places {}, reach x channels {}, places x channels {}, all three {}, each p < 0.001)"
    assert told.format(*cube.iloc[3:]) in words and (found["cube"]["p_holm"] < 0.001).all()
    means = rows.groupby("rung")["acc1"].mean()
    ends = means["lattice_s mixer=depthwise"], means["lattice_s"]
    assert f"all three together gain {ends[0] - ends[1]:.1f} ({ends[1]:.1f} to {ends[0]:.1f} %)" in words.lower()
    singles = sum(found["edges"]["diff"][f"dense to {cell}"] for cell in ("banded", "toeplitz", "dense_c"))
    assert f"from the dense mixer {singles:.1f} in sum" in words
    assert f"{found['cube']['deviation'].iloc[0]:.3f} with {found['cube']['df'].iloc[0]:.0f}" in words
    assert f"{rows['seconds'].sum() / 3600:.1f} hours of a core" in words


def test_the_tables_of_the_gaps_in_the_log(monkeypatch, tmp_path):
    rows, _, found = study("lattice_gap", monkeypatch, tmp_path)
    section = entry("lattice_gap")
    told = re.findall(r"^  \| ([\w ]+) \| ([+-]\d\.\d) \| (.+ to .+) \| ([<.\d ]+) \|$", section, re.MULTILINE)
    made = []
    for row in found["gap"].itertuples():
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        made.append((row.Index.removesuffix(", gap"), f"{row.diff:+.1f}", f"{row.low:.1f} to {row.high:.1f}", p))
    assert told == made
    told = re.findall(r"^  \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", section, re.MULTILINE)
    rows["cell"] = rows["model_kwargs"].map(lambda text: json.loads(text).get("mixer", "dense"))
    means = rows.pivot_table("acc1", "cell", "permute")
    means["gap"] = means["none"] - means["pixels"]
    assert len(told) == 8 and set(told) == {(cell, *(f"{v:.1f}" for v in row)) for cell, *row in means.itertuples()}


def test_the_table_of_shares_in_the_log(monkeypatch, tmp_path):
    """Effects of the model, and shares by Fieller's interval, once more as the roots of its quadratic."""
    rows, sweep, found = study("gap_closed", monkeypatch, tmp_path)
    section, arms = entry("gap_closed"), sweep.families["arms"].contrasts
    told = re.findall(r"^  \| ([\w ]+) \| ([+-].+) \| (.+ to .+) \| ([<.\d ]+) \| (.+) \|$", section, re.MULTILINE)
    by_seed = rows.pivot_table("acc1", "seed", "rung")
    over_flat = {name: sum(w * by_seed[rung] for rung, w in one.weights.items()) for name, one in arms.items()}
    gap, t = over_flat["architecture"], stats.t.ppf(0.975, len(by_seed) - 1)
    made = []
    for row in found["arms"].sort_values("diff", ascending=False).itertuples():
        closed = over_flat[row.Index]
        (a, c), (_, b) = np.cov(closed, gap) / len(gap) * t**2
        roots = np.roots([gap.mean() ** 2 - b, -2 * (closed.mean() * gap.mean() - c), closed.mean() ** 2 - a])
        low, high = 100 * np.sort(roots.real)
        share = "100" if closed is gap else f"{100 * closed.mean() / gap.mean():.0f} ({low:.0f} to {high:.0f})"
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        made.append((row.Index, f"{row.diff:+.1f}", f"{row.low:.1f} to {row.high:.1f}", p, share))
    assert len(told) == 8 and told == made
    assert found["arms"].loc["penalty", "differs"].startswith("penalty default to toeplitz, ")
    near = found["near"].loc["near over large"]
    assert f"+{near['diff']:.1f} ({near['low']:.1f} to {near['high']:.1f}, p {near['p_holm']:.3f})" in section
    averaged = pd.read_csv(RESULTS / "gap_closed/tta.csv")
    averaged["rung"] = averaged["checkpoint"].str.extract(r"/(\w{8})-")[0].map(rows.set_index("signature")["rung"])
    after, once = averaged.groupby("rung")["top1"].mean(), by_seed.mean()
    shifts = max(arms["shifts"].weights, key=arms["shifts"].weights.get)
    (plain,) = set(after.index) - {shifts}
    words = re.sub(r"\s+", " ", section)
    gain = f"{after[shifts] - once[shifts]:.1f} points by it, from {once[shifts]:.1f} to {after[shifts]:.1f} %"
    assert f"the arm trained on shifts gains {gain}" in words
    assert f"falls from {once[plain]:.1f} to {after[plain]:.1f} %" in words and len(averaged) == 10
