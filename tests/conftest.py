"""Shared fixtures: the digits as .beton files, written once per session; one thread, as tests run side by side."""

import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for every process a test starts

import pytest

from engine.data.ensure import ensure
from engine.folder.store import csv_text, folder_of, make_folder, write_bytes, write_json
from engine.run import How, Run, make_how, make_run
from tests.contract import Contract
from tests.lab import Lab, missing
from tests.reports import LEVELS, write_run
from tests.rerun import pytest_runtest_logreport, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--family", help="run the contract tests of this family only, and say what they prove")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proves(claim, *families): what a contract test proves, see tests/contract.py")
    if family := config.getoption("--family"):
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--family sums up in one process; leave out -n")
        config.pluginmanager.register(Contract(family))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for a SLURM comes first: other files then compute beside it, and short ones fill the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_slurm_"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder of the digits' .beton files."""
    folder = tmp_path_factory.mktemp("data")
    ensure("digits", 8, folder, say=lambda line: None)
    return folder


@pytest.fixture
def how(digits) -> How:
    return make_how({"data_dir": digits, "threads": 1, "log_interval": 1})


@pytest.fixture
def tiny() -> Run:
    """Three epochs of five steps, with everything that draws at random switched on."""
    return make_run(
        {
            "model": "mixer_nano",
            "model_kwargs": {"depth": 2, "dim": 16},
            "train_samples": 330,
            "batch_size": 64,
            "epochs": 3,
            "lr": 2e-3,
            "warmup_epochs": 0.5,
            "crop_pad": 1,
            "hflip": 0.5,
            "mixup": 0.2,
            "cutmix": 1.0,
            "smoothing": 0.1,
            "drop_path": 0.2,
            "clip_grad": 1.0,
            "model_ema": True,
            "model_ema_decay": 0.9,
            "amp": True,
        }
    )


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skips where SLURM is not installed, which CI takes for a failure."""
    if lacking := missing():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"SLURM is not installed: there is no {', '.join(lacking)}; as root, scripts/setup.sh slurm installs it")


@pytest.fixture(scope="module")
def make_lab(slurm):
    """Start a SLURM (tests/lab.py), which ends with the module."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Lab(**options))


@pytest.fixture(scope="module")
def lab(make_lab, request) -> Lab:
    """The SLURM of a module, with the options of its dict LAB."""
    return make_lab(**getattr(request.module, "LAB", {}))


@pytest.fixture(scope="session")
def whole(slurm, tmp_path_factory, digits):
    """The runs of tests/trial.py, trained here one after another without any disturbance."""
    from tests.trial import SEEDS, Trial

    trial = Trial(tmp_path_factory.mktemp("whole") / "trial", digits, SEEDS)
    trial.launch("debug")
    return trial


@pytest.fixture
def make_trial(tmp_path, digits, lab):
    """A sweep of runs with these seeds, on the module's SLURM; what a failed test leaves there ends with it."""
    from tests.trial import Trial

    labs = {}

    def make(*seeds: int, name: str = "trial", on: Lab | None = None, rest: str = "") -> Trial:
        labs[id(on or lab)] = on or lab
        return Trial(tmp_path / name, digits, seeds, on or lab, rest)

    yield make
    for each in labs.values():
        each.clear()


@pytest.fixture
def make(tmp_path):
    """Write the folder of a run that ends with the given accuracy, and return it with its Run."""

    def write(model="mixer_nano", acc1=None, state="done", status=(), **fields):
        run = make_run({"model": model, "epochs": 2, **fields})
        folder = folder_of(run, tmp_path)
        make_folder(run, folder)
        write_json(folder / "profile.json", {"params": 1000, "macs": 2000, "flops": 4000})
        write_json(folder / "status.json", {"state": state, "epoch": 2, "images_per_s": 100.0, **dict(status)})
        if acc1 is not None:
            rows = [{"epoch": 0, "eval_top1": 99.9}, {"epoch": 1, "eval_top1": acc1}]
            write_bytes(folder / "summary.csv", csv_text(rows).encode())
        return folder

    return write


@pytest.fixture
def runs():
    """Four rungs of three seeds."""
    return [make_run({"model": model, "seed": seed, "epochs": 4, "lr": 2e-3}) for model in LEVELS for seed in range(3)]


@pytest.fixture
def folders(runs, tmp_path):
    """All done; gains of exactly 3 and 5 points with a little spread."""
    return [write_run(tmp_path, run, LEVELS[run.model] + (0, 0.1, 0.3)[run.seed] * len(run.model) / 10) for run in runs]
