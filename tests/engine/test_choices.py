"""The table of choices: what is written is what is read, and a table that says no order is refused."""

import numpy as np
import pytest

from analysis.removal import ranks, sheets
from engine.cli.tables import write
from engine.errors import Refusal
from engine.fields import choices

HEAD = "checkpoint,criterion,way,layer,place\n"


def test_what_rankings_say_is_what_is_read(tmp_path):
    layers = [0, 1, 2, 3]
    greedy = ranks.Ranking("token_entropy", "greedy", layers, np.zeros(4), np.array([[2, 0, 3, 1], [0, 1, 2, 3]]))
    draws = ranks.by_rule("random_layers", layers, np.array([[3.0, 0, 2, 1], [0.0, 1, 2, 3]]))
    write(tmp_path / "c.csv", sheets.rows("results/runs/0123abcd-deit_nano-s0/", [greedy, draws], 2))
    known = choices.read(tmp_path / "c.csv")
    assert [(each.source, each.label, each.order) for each in known] == [
        ("0123abcd", "token_entropy, greedy", (2, 0, 3, 1)),
        ("0123abcd", "random_layers, draw 1", (1, 3, 2, 0)),
        ("0123abcd", "random_layers, draw 2", (0, 1, 2, 3)),
    ]
    assert [known[0].chosen(share) for share in (10, 25, 50, 75, 100)] == [(2,), (2,), (0, 2), (0, 2, 3), (0, 1, 2, 3)]
    again = choices.of_run(known, "0123abcd", "random_layers, draw 2", tmp_path / "c.csv")
    assert again == known[2]


@pytest.mark.parametrize(
    "path", ["x/0123abcd-deit_1m-s0", "0123abcd-deit_1m-s0/last.pth.tar", "/a/b/0123abcd-deit_1m-s0/"]
)
def test_a_run_is_known_by_its_folder(tmp_path, path):
    (tmp_path / "c.csv").write_text(HEAD + f"{path},cosine,,0,1\n")
    assert choices.read(tmp_path / "c.csv")[0].source == "0123abcd"


@pytest.mark.parametrize("rows, words", [
    ("a-b-s0,cosine,,0,1\na-b-s0,cosine,,0,2\n", "row 2: layer 0 of cosine stands there twice"),
    ("a-b-s0,cosine,,0,1\na-b-s0,cosine,,1,1\n", "places of a cosine are not 1 to 2"),
    ("a-b-s0,cosine,,0,1.5\n", "places of a cosine are not 1 to 1"),
    ("a-b-s0,cosine,,x,1\n", "row 1: layer 'x', place '1' are no numbers"),
])  # fmt: skip
def test_a_table_that_says_no_order_is_refused(tmp_path, rows, words):
    (tmp_path / "c.csv").write_text(HEAD + rows)
    with pytest.raises(Refusal, match=words):
        choices.read(tmp_path / "c.csv")


def test_an_order_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    known = [choices.Choice("a", "cosine", "", (1, 0))]
    with pytest.raises(Refusal, match="no order by 'ablation, greedy' of run a; it has: cosine"):
        choices.of_run(known, "a", "ablation, greedy", tmp_path)
    with pytest.raises(Refusal, match="it has nothing of this run"):
        choices.of_run(known, "b", "cosine", tmp_path)
