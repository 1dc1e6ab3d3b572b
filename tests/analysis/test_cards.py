"""The sentences above the forest: which contrasts are quoted, under which names, and which are told apart."""

import pandas as pd

from analysis.report.sections import asked
from tests.reports import cards, plain


def test_contrasts_of_one_name_say_their_family():
    rows = [("kernel", "lost", 3.0), ("kernel", "order", 2.0), ("gate", "order", 1.5)]
    found = pd.DataFrame(rows, columns=["contrast", "family", "diff"]).assign(verdict="gain", margin=1.0, said="")
    found["of"], found["weights"] = [("permute",)] * 3, [{"kernel": 1, "dense": -1}] * 3
    said = cards(str(asked._cards(found)))["gain"]
    assert said.startswith("3 gain. Kernel (lost) +3.0, kernel (order) +2.0, gate +1.5."), said


def test_where_ingredients_depend_on_each_other_no_mean_of_them_is_quoted():
    """A mean over what a clear interaction says to be unlike; one of the family without it, and pairs, are."""
    two, four = {"a": 1, "b": -1}, dict.fromkeys("abcd", 0.5)
    rows = [
        ("channels", "cube", ("channels",), four, 3.0, "gain"),
        ("form", "cube", ("form",), four, 1.0, "gain"),
        ("places x channels", "cube", ("places", "channels"), four, -2.0, "loss"),
        ("places x form", "cube", ("places", "form"), four, 0.1, "undecided"),
        ("a to b", "cube", ("channels",), two, 4.0, "gain"),
        ("channels elsewhere", "other", ("channels",), four, 5.0, "gain"),
    ]
    found = pd.DataFrame(rows, columns=["contrast", "family", "of", "weights", "diff", "verdict"])
    found = found.assign(margin=1.0, said="")
    text = str(asked._cards(found))
    assert cards(text)["gain"].startswith("3 gain. Channels elsewhere +5.0, a to b +4.0, form +1.0.")
    assert cards(text)["loss"].startswith("None lose.") and cards(text)["undecided"].startswith("None undecided.")
    crossed = plain(text[text.index("crossed") :])
    assert "Interactions. 1 of 2 shown: places x channels −2.0; so no mean of channels." in crossed
    assert "crossed" not in str(asked._cards(found[found["weights"].map(len) == 2])), "pairs alone have none"
    assert "so no mean" not in str(asked._cards(found[found["contrast"] != "places x channels"]))
    assert cards(str(asked._cards(found.iloc[2:4]))) == {}, "interactions alone"
