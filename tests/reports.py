"""Runs as training leaves them, and the page that the report makes of them."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from analysis.compare import frames
from analysis.report import assemble, sentences
from analysis.report.page import Page
from engine.folder.store import csv_text, folder_of, make_folder, write_bytes, write_json

ROOT = Path(__file__).parent.parent
LEVELS = {"mlp_nano": 90.0, "mixer_nano": 93.0, "convmixer_nano": 98.0, "timm/resnet18": 96.0}
MODELS = (*LEVELS, "gmlp_nano", "deit_nano", "bmlp_nano", "lattice_nano")  # by size


def write_run(results, run, acc1, state="done", **status):
    """A run's folder as training leaves it, its accuracy rising to acc1."""
    folder = folder_of(run, results)
    make_folder(run, folder)
    size = 1000 * (1 + MODELS.index(run.model))
    write_json(folder / "profile.json", {"params": size, "macs": 16 * size, "flops": 32 * size})
    write_json(folder / "env.json", {"commit": "c0ffee", "python": "3.11.2", "torch": "2.9.1", "threads": 2})
    write_json(
        folder / "status.json",
        {"state": state, "epoch": run.epochs, "acc1": acc1, "images_per_s": 1e6 / size, "seconds": 3.5, **status},
    )
    rows = [
        {"epoch": epoch, "eval_top1": round(acc1 - 20 / 2**epoch + 20 / 2 ** (run.epochs - 1), 3)}
        for epoch in range(run.epochs)
    ]
    write_bytes(folder / "summary.csv", csv_text(rows).encode())
    return folder


def result_of(folders):
    """What the page says where no contrast was named: text by its label."""
    frame = frames.load(folders)
    page = Page("ladder", frame, ROOT / "results")
    return {label: text for _, label, text in sentences.unasked(frame, page.ranked, page.table, str)}


def page_of(folders, results, **given):
    return assemble.write_report("ladder", folders, results, **given).read_text()


def plain(text):
    """What is read of a page, without tags and with plain spaces."""
    return unescape(re.sub(r"<[^>]+>", "", text)).replace("\u00a0", " ")


def section(text, name):
    """A section of a page."""
    start = text.index(f'<section id="{name}">')
    return text[start : text.index("</section>", start)]


class Reader(HTMLParser):
    """What a browser would fetch, all ids, and whether the tags nest."""

    VOID = frozenset({"meta", "br", "wbr", "input"})

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.note(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def note(self, tag, attributes):
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "srcset", "data", "poster", "action") or (key == "href" and not value.startswith("#")):
                self.loads.append((tag, key, value))
            assert not key.startswith("on")
        assert tag not in ("link", "iframe", "object", "embed", "base")


def cards(text):
    """Verdict -> the sentence of its card."""
    return {kind: plain(words) for kind, words in re.findall(r'<p class="card v-(\w+)">(.*?)</p>', text, re.DOTALL)}
