"""Plans: costs without building a model, times from what was measured, and the command that repeats a run."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import archs
from engine.cli.flags import Parser, add_fields, collect
from engine.cost.profile import profile
from engine.errors import Refusal
from engine.fields.effects import OPTIMIZERS
from engine.folder import store
from engine.run import BEST, LAST, How, Run
from slurm import totals
from slurm.define import cost, plan
from slurm.define.sweep import Sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTMLP_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def shown(*runs: Run, dropped: int = 0, slots: int = 1) -> str:
    console = Console(width=280, record=True, file=io.StringIO())
    console.print(plan.table(Sweep("mine", "Which one?", runs, dropped), slots))
    return console.export_text()


def done(run: Run, **status) -> None:
    folder = store.folder_of(run)
    store.make_folder(run, folder)
    store.write_json(folder / "status.json", {"state": "done", "acc1": 90.0, **status})


# --- what a model costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixer_nano", "vip_nano", "cyclemlp_nano", "mixer_1m"])
def test_the_cost_of_a_variant_is_that_of_the_built_model(results, name):
    run = Run(model=name, dataset="digits" if name.endswith("nano") else "cifar10")
    (found,) = cost.costs([run], [store.folder_of(run)]).values()
    shape = dict(zip(("img_size", "in_chans", "num_classes"), cost.shape_of(run)[1:], strict=True))
    built = profile(name, **shape)
    assert (found.params, found.macs) == (built["params"], built["macs"])
    assert not results.exists(), "what is known is not counted"


def test_what_is_not_known_is_counted_once(results, capfd):
    runs = [Run(model="mixer_nano", model_kwargs={"dim": 20}, seed=seed) for seed in range(3)]
    runs.append(Run(model="mixer_1m", dataset="cifar100"))
    folders = [store.folder_of(run) for run in runs]
    first = cost.costs(runs, folders)
    built = profile("mixer_nano", img_size=8, in_chans=1, num_classes=10, dim=20)
    assert first[cost.shape_of(runs[0])] == cost.Cost(built["params"], built["macs"])
    assert len(first) == 2 and capfd.readouterr().err.count("counting") == 2
    assert cost.costs(runs, folders) == first and not capfd.readouterr().err
    (results / cost.CACHE).write_text("{")  # damaged: counted again
    assert cost.costs(runs, folders) == first
    assert json.loads((results / cost.CACHE).read_text()).keys() == {cost._key(shape) for shape in first}


def test_a_count_holds_for_one_state_of_the_whole_zoo(tmp_path, monkeypatch):
    shutil.copytree(Path(archs.__file__).parent, tmp_path / "archs")
    monkeypatch.setattr(archs, "__file__", str(tmp_path / "archs" / "__init__.py"))
    before = cost._zoo.__wrapped__()
    assert before == cost._zoo.__wrapped__()
    with (tmp_path / "archs" / "parts" / "layers.py").open("a") as file:
        file.write("# changed")
    assert cost._zoo.__wrapped__() != before


def test_a_profile_of_a_run_is_taken_over(results, capfd):
    runs = [Run(model="mixer_nano", model_kwargs={"dim": 20}, seed=seed) for seed in range(2)]
    done(runs[1])
    store.write_json(store.folder_of(runs[1]) / "profile.json", {"params": 5, "macs": 7, "flops": 14})
    assert set(cost.costs(runs, [store.folder_of(run) for run in runs]).values()) == {cost.Cost(5, 7)}
    assert not capfd.readouterr().err


def test_shipped_costs_are_those_that_would_be_counted(results, monkeypatch):
    shipped = json.loads(cost.SHIPPED.read_text())
    monkeypatch.setattr(cost, "SHIPPED", results / "none.json")
    run = Run(model="timm/test_resnet")
    assert shipped.keys() == {cost._key(cost.shape_of(run))}, "one for the demo, for this version of timm"
    (found,) = cost.costs([run], [store.folder_of(run)]).values()
    assert list(shipped.values()) == [{"params": found.params, "macs": found.macs}]


def test_a_model_that_cannot_be_built_is_refused_by_name(results):
    run = Run(model="mixer_nano", model_kwargs={"patch_size": 3})
    with pytest.raises(Refusal, match=r"mixer_nano.*3"):
        cost.costs([run], [store.folder_of(run)])


# --- how long it takes ------------------------------------------------------------------------------------------------


def test_images_are_those_that_training_and_evaluation_see():
    digits = 1297 + 500 / 3
    assert cost.images(Run(epochs=1)) == pytest.approx(digits)
    assert cost.images(Run(epochs=30)) == pytest.approx(30 * digits)
    assert cost.images(Run(epochs=1, train_samples=100)) == pytest.approx(100 + 500 / 3)
    assert cost.images(Run(epochs=1, holdout=0.1)) == pytest.approx(0.9 * 1297 + 129.7 / 3)


def test_time_comes_from_the_rung_itself_then_from_others_by_macs_then_it_is_unknown(results):
    rung, other = Run(model="mixer_nano"), Run(model="bmlp_nano")
    price = cost.costs([rung, other], [store.folder_of(rung), store.folder_of(other)])
    status = {"state": "done", "images_per_s": 500.0}
    speeds = cost.rates([rung, rung.but(seed=1)], [status, {"state": "done", "images_per_s": 700.0}], price)
    guess = speeds.guess(rung.but(seed=2), price[cost.shape_of(rung)])
    assert guess.seconds == pytest.approx(cost.images(rung) * (1 / 500 + 1 / 700) / 2) and guess.source == cost.HERE
    macs = [price[cost.shape_of(run)].macs + 100_000 for run in (rung, other)]  # what an image costs besides
    expected = cost.images(other) / (600 * macs[0] / macs[1])
    guess = speeds.guess(other, price[cost.shape_of(other)])
    assert guess.seconds == pytest.approx(expected) and guess.source == cost.MACS
    assert speeds.guess(other.but(amp=True), price[cost.shape_of(other)]) is None, "another precision, another speed"
    assert cost.Rates().guess(rung, price[cost.shape_of(rung)]) is None


def test_seconds_that_finished_runs_took_come_before_those_of_a_table_and_those_before_macs(results):
    """In numbers: 90 s and 110 s here, 300 s in a table, for as many epochs; twice of it for twice as many."""
    rung, other = Run(model="mixer_nano", epochs=10), Run(model="bmlp_nano", epochs=10)
    price = cost.costs([rung, other], [store.folder_of(rung), store.folder_of(other)])
    here = [{"state": "done", "seconds": seconds, "images_per_s": 500.0} for seconds in (90.0, 110.0)]
    told = {"state": "done", "seconds": 300.0, "images_per_s": 50.0, "table": "results/mine/runs.csv"}
    runs = [rung.but(seed=seed) for seed in range(3)]
    speeds = cost.rates([*runs, other], [*here, told, {**told, "seconds": 40.0}], price)
    of = {run: speeds.guess(run, price[cost.shape_of(run)]) for run in (rung.but(seed=9), rung.but(epochs=20), other)}
    assert [round(guess.seconds, 6) for guess in of.values()] == [100.0, 200.0, 40.0]
    assert [guess.source for guess in of.values()] == [cost.HERE, cost.HERE, cost.TABLE]
    speeds = cost.rates(runs, [{"state": "planned"}, {"state": "planned"}, told], price)
    assert speeds.guess(rung, price[cost.shape_of(rung)]) == cost.Guess(pytest.approx(300.0), cost.TABLE)


def test_places_that_are_free_first_take_the_next_run():
    assert cost.makespan([3, 3, 2, 1], 1) == 9
    assert cost.makespan([3, 3, 2, 1], 2) == 5  # 3 + 2 beside 3 + 1
    assert cost.makespan([1, 1, 1, 9], 2) == 10  # the long one last, as the sweep has it
    assert cost.makespan([4], 8) == 4 and cost.makespan([], 3) == 0


def test_the_plan_says_how_long_with_how_many_at_a_time_and_from_what(results):
    runs = [Run(epochs=10, seed=seed) for seed in range(5)]
    done(runs[0], seconds=600.0)
    store.make_folder(runs[1], store.folder_of(runs[1]))
    store.write_json(store.folder_of(runs[1]) / "status.json", {"state": "stopped", "step": 75, "steps": 100})
    one, two = shown(*runs), shown(*runs, slots=2)
    source = "(by finished runs of the rung here: 4)"
    assert f"1 done, 4 to train, about 32 min 30 s one after another {source}" in one  # 150 s and 3 x 600 s
    assert f"1 done, 4 to train, about 20 min 0 s 2 at a time {source}" in two  # 150 + 600 beside 600 + 600
    assert re.search(r"mixer_nano .* 32 min 30 s +runs here", one) and re.search(r"32 min 30 s +runs here", two)
    text = shown(*runs, Run(model="bmlp_nano", epochs=10), slots=2)
    assert "2 at a time and 1 of unknown length" in text, "no images/s to learn from"
    done(runs[0].but(seed=9), seconds=600.0, images_per_s=500.0)
    text = shown(*runs, Run(model="bmlp_nano", epochs=10), runs[0].but(seed=9), slots=2)
    assert "(by finished runs of the rung here: 4, by MACs at the speed of other rungs: 1)" in text


def test_other_sweeps_lend_their_speed(results):
    other = Run(model="bmlp_nano", seed=9)
    done(other, images_per_s=1000.0)
    store.write_json(store.folder_of(other) / "profile.json", {"params": 1, "macs": 444_736, "flops": 2})
    damaged = results / "runs" / "damaged"
    damaged.mkdir()
    (damaged / "status.json").write_text("{")
    text = shown(Run(model="mixer_nano", epochs=30))  # of as many MACs, so as fast
    assert f"about {plan.duration(cost.images(Run(epochs=30)) / 1000)} one after another" in text


def test_the_table_counts_repeats_and_what_is_done(results):
    runs = [Run(model=model, seed=seed, lr=lr) for model in ("mixer_nano", "mlp_nano") for seed in (0, 1)
            for lr in (1e-3, 3e-3)]  # fmt: skip
    done(runs[0], images_per_s=100.0)
    store.make_folder(runs[1], store.folder_of(runs[1]))
    store.write_json(store.folder_of(runs[1]) / "status.json", {"state": "failed"})
    text = shown(*runs, dropped=2)
    assert re.search(r"8 runs \(2 repeats left out\): 1 done, 1 failed, 6 to train, about \d+ min", text)
    row = next(line for line in text.splitlines() if "mixer_nano" in line)
    assert re.search(r"batch_size 128, lr 0.001 0.003, seed 0 1 +4 +1 +27.6 k +445 k", row)


def test_what_was_never_measured_is_said_to_be_unknown(results):
    text = shown(Run())
    assert [line.strip() for line in text.splitlines()[-2:]] == [
        "1 runs: 0 done, 1 to train",
        "0.22 MB of disk for weights, 0.99 MB more while training",
    ]  # 27,562 weights: twice, and three checkpoints with two averages of each


def test_hours_and_memory_are_those_that_were_measured(results):
    runs = [Run(epochs=10, seed=seed) for seed in range(5)]
    done(runs[0], seconds=3600.0, memory_gb=0.8)
    done(runs[1], seconds=3600.0, memory_gb=0.9)
    for run, device in zip(runs, ("cpu", "cpu"), strict=False):
        store.write_json(store.folder_of(run) / "env.json", {"threads": 2, "world_size": 1, "device": device})
    assert "about 6 core-hours (2 threads each); up to 0.9 GB of memory a run; 0.66 MB of disk" in shown(*runs)
    for run in runs[:2]:
        store.write_json(store.folder_of(run) / "env.json", {"threads": 2, "world_size": 4, "device": "cuda:0"})
    text = shown(*runs, slots=3)
    assert "about 12 GPU-hours (4 GPUs each); up to 0.9 GB of GPU memory a run" in text and "3 MB more while" in text
    assert "core-hours" not in shown(*runs[:2]) and "disk" not in shown(*runs[:2]), "nothing is left"


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_disk_is_what_a_run_writes(results, digits, opt):
    """A checkpoint and the weights of a real run, within what files are longer than what is in them."""
    from engine.errors import STOPPED
    from engine.train import train

    run = Run(model="mixer_nano", opt=opt, epochs=2, train_samples=256, lr=1e-4, model_ema=opt == "adam")
    folder, how = store.folder_of(run), How(data_dir=digits, threads=1, checkpoint_interval=1)
    steps = iter([0, 0, STOPPED])
    with pytest.raises(Refusal, match="stopped at step 3"):
        train(run, folder, how, lambda: next(steps))
    after, during = totals._bytes(run, 27_562)
    checkpoints = [path.stat().st_size for path in folder.glob("checkpoint-*")]
    assert len(checkpoints) == 2 and 1 < sum(checkpoints) / (during * 2 / 3) < 1.25
    train(run, folder, how)
    weights = [folder / name for name in (LAST, BEST)]
    assert 1 < sum(path.stat().st_size for path in weights) / after < 1.25


def test_ten_thousand_runs_are_planned_in_seconds(results):
    runs = tuple(Run(seed=seed, lr=(1 + seed % 100) * 1e-5) for seed in range(10_000))
    began = time.process_time()
    text = shown(*runs)
    assert time.process_time() - began < 10
    assert "lr 1e-05..0.001 (100), seed 0..9999 (10000)" in text


# --- the command of a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(model="timm/test_resnet", dataset="cifar10", img_size=64, opt_betas=(0.9, 0.95), amp=True, seed=7),
        Run(model_kwargs={"depth": 2, "token_ratio": 1e-5}, hflip=0.5, scale=(0.5, 1), model_ema=True),
        Run(dataset="imagefolder/my-birds", img_size=64, stored_size=96, aa="rand-inc1-m9"),
        Run(initial_checkpoint="a folder/0a1b2c3d-mixer_nano-s0"),  # of a run that is still planned
        Run(initial_checkpoint="/it's.pth", initial_identity="sha256:0123456789abcdef"),  # gone since
    ],
)
def test_the_command_gives_the_run_back(results, run):
    parser = Parser()
    add_fields(parser, Run)
    add_fields(parser, How)
    words = shlex.split(plan.repro(run, {"workers": 3, "torchcompile": True, "data_dir": "/some where"}))
    assert words[:2] == ["python", "scripts/train.py"]
    again, how = collect(parser.parse(words[2:]))
    assert again == run and again.signature == run.signature
    assert (how.workers, how.torchcompile, str(how.data_dir)) == (3, True, "/some where")


def test_the_command_keeps_what_the_last_bits_depend_on(results):
    run = Run()
    done(run)
    store.write_json(store.folder_of(run) / "env.json", {"threads": 2, "device": "cuda:0", "world_size": 1})
    assert (
        plan.repro(run, {"threads": 8})
        == "python scripts/train.py --model mixer_nano --threads 2 --device cuda --seed 0"
    )
    store.write_json(store.folder_of(run) / "env.json", {"threads": 2, "device": "cpu", "world_size": 4})
    assert plan.repro(run).startswith("torchrun --nproc-per-node 4 scripts/train.py --model mixer_nano --threads 2")


def test_a_plan_of_known_rungs_imports_nothing_heavy(results, tmp_path):
    code = (
        "import sys\nfrom slurm.define import load, plan\nplan.table(load.load('demo'))\n"
        "heavy = {'torch', 'timm', 'ffcv', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
