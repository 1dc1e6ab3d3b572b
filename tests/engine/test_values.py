"""Values of flags, grids and YAML files: one reading of all, and one line for what cannot be read."""

import math
from pathlib import Path

import pytest
import yaml

from engine.errors import USAGE, Refusal
from engine.fields.values import folder, home, pairs, read, value, values
from engine.run import Run, make_run, read_yaml
from slurm.cluster import clusters
from slurm.define import grid
from slurm.queue.cancel import matching


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.5e3", 1500.0),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("3", 3),
        ("1_000", 1000),
        ("1e", "1e"),
        ("e3", "e3"),
        ("0,2,4", [0, 2, 4]),
        ("1e-3, 2", [0.001, 2]),
        ("[0]", [0]),
        ("a,b", "a,b"),
        ("rand-m9", "rand-m9"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'1e-3'", "1e-3"),
    ],
)
def test_a_value_is_read_as_it_looks(text, right):
    found = value(text, "--x")
    assert found == right and type(found) is type(right)


def test_infinity_and_nan_are_numbers():
    assert value("-.inf", "--x") == -math.inf and math.isnan(value(".nan", "--x"))


def test_every_number_that_is_written_is_read_back():
    for number in (1e-3, 1e22, 5e-324, 1.5e300, -1e-10, 0.1, 3.0):
        assert value(repr(number), "--x") == number == value(yaml.safe_dump(number).split("\n")[0], "--x")


def test_flags_grids_and_files_read_alike(tmp_path):
    path = tmp_path / "r.yaml"
    for text in ("1e-3", "0.5", "7", "word", "true", "null", "[1e-3, a]", "'1e-3'"):
        path.write_text(f"lr: {text}\n")
        assert value(text, "") == values(text, "")[0] == read(path)[0]["lr"] == pairs([f"k={text}"], "--set")["k"]


@pytest.mark.parametrize(
    "text", ["[3", "a: b: c", "@x", "*x", "!!python/name:os.system", "0b_", "\0", "{a: 1, a: 2}", "[" * 5000]
)
def test_what_is_no_yaml_is_one_line(text):
    with pytest.raises(Refusal) as caught:
        pairs([f"depth={text}"], "--model-kwargs")
    line = str(caught.value)
    assert line.startswith("--model-kwargs 'depth=") and "\n" not in line and caught.value.code == USAGE


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["depth"], "takes key=value, not 'depth'"),
        (["=3"], "takes key=value, not '=3'"),
        (["depth=1", "dim=3", "depth=2"], "gives depth twice"),
    ],
)
def test_a_faulty_pair_is_one_line(words, line):
    with pytest.raises(Refusal, match=line):
        pairs(words, "--set")


# --- files ------------------------------------------------------------------------------------------------------------

RECIPE = "# Größe\nlr: 1e-3\nmodel_kwargs: {depth: 2}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_read_in_every_encoding_that_it_names(tmp_path, encoding):
    path = tmp_path / "r.yaml"
    path.write_bytes(RECIPE.encode(encoding))
    assert read(path) == ({"lr": 0.001, "model_kwargs": {"depth": 2}}, {"lr": 2, "model_kwargs": 3})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (RECIPE.encode("latin-1"), "line 1: byte 0xf6 is no UTF-8; save the file as UTF-8"),
        ("lr: 1\n# Größe\n".encode("cp1252"), "line 2: byte 0xf6 is no UTF-8"),
        ("lr: 1\n".encode("utf-16-le"), "zero bytes, as in UTF-16 without its mark"),
        (b"\xff\xfel", "byte 0x6c is no UTF-16"),
        (b"a: {b: 1,\n b: 2}\n", "line 2: key 'b' was given in line 1 already"),
        (b"a:\n  - b: 1\n    c: 2\n    b: 3\n", "line 4: key 'b' was given in line 2 already"),
        (b"lr: 1\nlr: 2\n", "line 2: key 'lr' was given in line 1 already"),
        (b"lr: 1\n---\nlr: 2\n", "line 2: not YAML: but found another document"),
        (b"lr: [1\n", "line 2: not YAML"),
        (b"- a\n", "expected 'key: value' lines"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, data, words):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    for reader in (read, read_yaml):
        with pytest.raises(Refusal) as caught:
            reader(path)
        line = str(caught.value)
        assert line.startswith(str(path)) and words in line and "\n" not in line and caught.value.code == USAGE


def test_a_merged_key_is_no_repetition(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &a {cpus: 4, gpus: 1}\nb:\n  <<: *a\n  gpus: 2\n")
    assert read(path)[0]["b"] == {"cpus": 4, "gpus": 2}


def test_profiles_of_clusters_are_read_alike(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOFTMLP_CLUSTERS", "~/c.yaml")
    path.write_bytes("# Größe\ngpu: {mem_gb: 1e2, python: ~/bin/python}\n".encode("utf-16"))
    assert clusters.profiles() == {"gpu": {"mem_gb": 100.0, "python": f"{tmp_path}/bin/python"}}
    for data, words in (
        ("# Größe\n".encode("latin-1"), "byte 0xf6 is no UTF-8"),
        (b"gpu:\n  cpus: 1\n  cpus: 2\n", "line 3: key 'cpus' was given in line 2"),
        (b"gpu: 3\n", "expected a name"),
    ):
        path.write_bytes(data)
        with pytest.raises(Refusal, match=words) as caught:
            clusters.profiles()
        assert "\n" not in str(caught.value)


# --- where values are used --------------------------------------------------------------------------------------------


def test_where_compares_values_and_not_spellings():
    runs = [make_run({"lr": rate, "model_kwargs": {"depth": depth}}) for rate in (1e-3, 3e-3) for depth in (1, 3)]
    for word in ("lr=1e-3", "lr=0.001", "lr=1.0e-03", "lr=.001"):
        assert matching(runs, [word]) == [0, 1], word
    assert matching(runs, ["arch=mixer_nano", "lr=3e-3"]) == [2, 3]
    assert matching(runs, ["model_kwargs.depth=3"]) == [1, 3], "3 is the variant's own depth"
    assert matching(runs, ["amp=false"]) == [0, 1, 2, 3]
    for words, line in (
        (["lr=1e-2"], "no run has lr=1e-2"),
        (["amp=0"], "no run has amp=0"),
        (["lr=1e-3", "lr=3e-3"], "gives lr twice"),
        (["model=mixer_nano", "arch=mixer_nano"], "gives model twice"),
        (["lr=[1"], "not YAML"),
        (["lrr=1"], "did you mean 'lr'?"),
    ):
        with pytest.raises(Refusal) as caught:
            matching(runs, words)
        assert line in str(caught.value)


def test_a_grid_of_lists_of_the_model():
    sweep = grid.sweep_of(["model_kwargs.mlp_layers=[0,1],[1]"], {"model": "deit_nano"})
    assert [run.model_kwargs["mlp_layers"] for run in sweep.runs] == [[0, 1], [1]]


# --- homes ------------------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_that_it_names(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert [home(text) for text in ("~", "~/x", "a~", "./~", "~no-such-user/x")] == [
        "/h",
        "/h/x",
        "a~",
        "./~",
        "~no-such-user/x",
    ]
    monkeypatch.setenv("SOFTMLP_X", "~/x")
    assert folder("SOFTMLP_X", Path("/d")) == Path("/h/x")
    monkeypatch.setenv("SOFTMLP_X", "")
    assert folder("SOFTMLP_X", Path("/d")) == Path("/d")


def test_a_run_of_yaml_numbers_is_that_of_python_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("lr: 1e-3\nepochs: 3e1\nwarmup_epochs: 0\nmodel_kwargs: {dim: 3.2e1}\n")
    assert make_run(read_yaml(path)) == Run()
