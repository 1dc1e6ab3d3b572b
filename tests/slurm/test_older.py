"""What another scheme left, in run folders and in tables, is told in one line, stays readable, and counts nowhere."""

import shutil

import pytest
import yaml

from analysis import notebook
from engine.errors import Refusal
from engine.folder import published, store
from engine.run import Run
from scripts import compare, report, sweep
from slurm.define import find, grid
from slurm.queue import tables

FILE = '''"""Which?"""

from engine.run import Run


def runs():
    for seed in range(2):
        yield Run(model="mlp_nano", epochs=2, seed=seed)
'''


@pytest.fixture
def older(tmp_path, monkeypatch):
    """A sweep's file and, as the commits of scheme 1 left them, its two run folders, manifest and table."""
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    (tmp_path / "mine.py").write_text(FILE)
    rows = [left(tmp_path / "results", seed, 90.0 + seed) for seed in range(2)]
    folder = tmp_path / "results" / "mine"
    folder.mkdir()
    listed = [{key: row[key] for key in ("signature", "folder", "rung", "seed")} for row in rows]
    (folder / "manifest.csv").write_text(store.csv_text(listed))
    (folder / "runs.csv").write_text(store.csv_text(rows))
    return tmp_path / "mine.py"


def left(results, seed, acc1):
    """A run that ended, with an args.yaml without a scheme; its row in a table."""
    run, signature = Run(model="mlp_nano", epochs=2, seed=seed), f"{seed:08x}"
    folder = results / "runs" / f"{signature}-mlp_nano-s{seed}"
    folder.mkdir(parents=True)
    fields = {key: value for key, value in run.record().items() if key not in ("scheme", "initial_identity")}
    (folder / "args.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    store.write_json(folder / "env.json", {"commit": "0123abc"})
    store.write_json(folder / "status.json", {"state": "done", "epoch": 2, "acc1": acc1})
    (folder / "summary.csv").write_text(f"epoch,train_loss,eval_top1\n0,1.0,50.0\n1,0.5,{acc1}\n")
    return {"signature": signature, "folder": folder.name, "rung": "mlp_nano"} | fields | {"state": "done"} | {
        "epoch": 2, "acc1": acc1}  # fmt: skip


def said(main, monkeypatch, capsys, *words) -> tuple[str, str]:
    """What a command puts out, and what it says beside that in one line, or is refused with."""
    monkeypatch.setattr("sys.argv", ["x", *map(str, words)])
    refused = ""
    try:
        main()
    except Refusal as refusal:
        refused = str(refusal)
    out, err = capsys.readouterr()
    return out, refused or "\n".join(line for line in err.splitlines() if "another version" in line)


@pytest.mark.parametrize("main, words", [(sweep.main, ("plan",)), (sweep.main, ("status",)), (compare.main, ()),
                                         (report.main, ())])  # fmt: skip
def test_every_command_says_in_one_line_what_an_older_version_left(older, main, words, monkeypatch, capsys):
    out, line = said(main, monkeypatch, capsys, *words, older)
    folder = older.parent / "results" / "mine"
    assert f"{folder}/runs.csv: 2 rows of another version (not scheme 2)" in line and "\n" not in line
    assert f"mv {folder} {folder}_older" in line and "90.0" not in out and "91.0" not in out
    (folder / "runs.csv").unlink()
    out, line = said(main, monkeypatch, capsys, *words, older)
    assert "00000000-mlp_nano-s0 and 1 more: trained by another version (scheme 1, this is 2)" in line
    assert "git worktree add ../older 0123abc" in line and "\n" not in line


def test_what_the_line_says_works(older, monkeypatch, capsys):
    folder = older.parent / "results" / "mine"
    shutil.move(folder, f"{folder}_older")
    out, line = said(compare.main, monkeypatch, capsys, "mine_older")
    assert "90.50 (90.00, 91.00)" in out and not line
    assert said(sweep.main, monkeypatch, capsys, "status", older)[1] == ""
    assert notebook.table("mine_older")["acc1"].tolist() == [90.0, 91.0], "and not from folders that it cannot read"
    assert notebook.run("00000001")["acc1"] == 91.0


def test_new_runs_are_counted_alone(older, monkeypatch, capsys):
    """Beside an older folder of the same fields; a folder of runs leaves the older ones out and says so."""
    results = older.parent / "results"
    out, line = said(compare.main, monkeypatch, capsys, results / "runs")
    assert line.startswith(str(results / "runs/00000000-mlp_nano-s0")) and not out, "nothing of ours is there"
    assert "scheme 1" in said(compare.main, monkeypatch, capsys, results / "runs/00000001-mlp_nano-s1")[1]
    new = Run(model="mlp_nano", epochs=2, seed=0)
    folder = store.folder_of(new)
    store.make_folder(new, folder)
    store.write_json(folder / "status.json", {"state": "done", "epoch": 2, "acc1": 70.0})
    (folder / "summary.csv").write_text("epoch,train_loss,eval_top1\n1,0.5,70.0\n")
    out, line = said(compare.main, monkeypatch, capsys, results / "runs")
    assert "70.00 (n=1)" in out and "and 1 more: trained by another version" in line
    assert [status["state"] for status in tables.standing(find.named(str(older)))] == ["done", "planned"]
    assert "its 2 rows have other signatures" in said(sweep.main, monkeypatch, capsys, "collect", older)[1]


def test_a_grid_of_another_scheme_is_its_table(older, monkeypatch):
    """Its name is a hash of signatures that no run has any more."""
    results = older.parent / "results"
    shutil.move(results / "mine", results / "grid_0123abcd")
    words = {"question": "Grid over seed", "grid": ["seed=0,1"], "fields": {"model": "mlp_nano", "epochs": 2}}
    (results / "grid_0123abcd" / "sweep.yaml").write_text(yaml.safe_dump(words))
    assert isinstance(find.named("grid_0123abcd"), published.Study)
    with pytest.raises(Refusal, match="gives other runs than those it was written for"):
        grid.load("grid_0123abcd")
