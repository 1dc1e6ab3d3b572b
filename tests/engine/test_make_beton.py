"""Flags of make_beton.py that make no sense end in one line before anything is read or written."""

import pytest

from engine.errors import DATA, USAGE, Refusal
from scripts import make_beton


@pytest.mark.parametrize("flag", ["-j", "--img-size", "--max-resolution", "--subset", "--quality"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "1e3", "", "two", "²", "9" * 5000])
def test_numbers_without_sense_are_refused(flag, number, tmp_path, monkeypatch):
    words = ["--dataset", "digits", "--data-dir", str(tmp_path / "data"), flag, number]
    monkeypatch.setattr("sys.argv", ["make_beton.py", *words])
    with pytest.raises(Refusal, match=flag) as caught:
        make_beton.main()
    assert caught.value.code == USAGE and "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["-j", "1025"], "'1025' is not a whole number from 1 to 1024"),
        (["--img-size", "4097"], "'4097' is more than 4096 pixels"),
        (["--max-resolution", "100000"], "'100000' is not a whole number from 1 to 4096"),
        (["--quality", "101"], "'101' is not a whole number from 1 to 100"),
        (["--write-mode", "smart", "--smart-threshold", "-1"], "'-1' is not a whole number from 0 on"),
        (["--compress-probability", "nan"], "compress-probability nan is not from 0 to 1"),
        (["--compress-probability", "-0.5"], "compress-probability -0.5 is not from 0 to 1"),
        (["--dataset", "imagefolder/x"], "needs the size to store, --img-size N or --img-size HxW"),
    ],
)
def test_numbers_out_of_their_range_are_refused_with_it(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_beton.py", "--dataset", "digits", "--data-dir", str(tmp_path / "d"), *words])
    with pytest.raises(Refusal) as caught:
        make_beton.main()
    assert said in str(caught.value) and caught.value.code == USAGE
    assert not (tmp_path / "d").exists()


def test_val_is_looked_at_before_train_is_converted(tmp_path, monkeypatch):
    for name in ("train/a", "train/b", "val/a", "val/q"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    words = ["--dataset", "imagefolder/x", "--img-size", "8", "--raw-dir", str(tmp_path / "raw")]
    monkeypatch.setattr("sys.argv", ["make_beton.py", *words, "--data-dir", str(tmp_path / "d")])
    with pytest.raises(Refusal, match="has the class 'q' that train has not") as caught:
        make_beton.main()
    assert caught.value.code == DATA and not (tmp_path / "d").exists()


def test_numbers_are_taken_as_they_are():
    given = make_beton.make_parser().parse(["-j", "1024", "--img-size", "1", "--subset", "70000", "--quality", "100"])
    assert (given.workers, given.img_size, given.subset, given.quality) == (1024, 1, 70_000, 100)
