"""One page about any module that gives logits: what it is forced to be, what it learned, what it costs.

WORD is family_variant, timm/NAME, FILE.py:FUNCTION (which returns an nn.Module) or a run's folder or signature. Forced,
on random weights: the receptive field by depth, which moves of the image its maps follow and its logits do not see; of
this zoo, which relabelings training cannot see. Learned, where weights and images are given: accuracy and probes; a
run has both. Costs: parameters, MACs by every counter, memory, speed. Written are index.html, one file that loads
nothing; each picture as .svg and .pdf; passport.json with all numbers. What is not known is named on the page.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from engine.cli.flags import Parser, add_debug, add_fields, run_main
from engine.cli.numbers import size, whole
from engine.fields.values import pairs
from engine.folder import store
from engine.run import How, make_how


def main() -> None:
    began, given = time.monotonic(), parse()
    how = make_how({key: value for key, value in vars(given).items() if key in How.model_fields})

    from analysis.passport.asked import Asked, kind_of, read

    kind, folder = kind_of(given.word)
    fields = {key: getattr(given, key) for key in ("weights", "img_size", "num_classes", "in_chans", "mean", "std")}
    fields |= {
        "model_kwargs": pairs(given.model_kwargs, "--model-kwargs"),
        "dataset": given.data,
        "images": given.images,
    }
    asked = read(Asked(given.word, kind, folder, **fields), how)

    from analysis.passport import learned  # from here on torch

    names = learned.wanted(given.probes)
    if how.threads:
        import torch

        torch.set_num_threads(how.threads)
    from analysis.passport import made, page
    from analysis.passport.holder import open_holder

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {line}", file=sys.stderr, flush=True)

    holder = open_holder(asked, how)
    tell(f"{holder.title}: {made.estimate(holder, names, not given.no_speed)}")
    told = {"speed": not given.no_speed, "batch_size": given.batch_size, "rounds": given.rounds, "tell": tell}
    command = f"python scripts/passport.py {shlex.join(sys.argv[1:])}"
    found = made.measure(holder, names, how, command=command, **told)
    print(page.write(found, given.output or store.results_dir() / "passports" / asked.label))


def parse() -> argparse.Namespace:
    parser = Parser(prog="scripts/passport.py", description=__doc__)
    parser.add_argument("word", metavar="WORD", help="family_variant, timm/NAME, FILE.py:FUNCTION, a run")
    words = "trained weights: .pth, .pth.tar, .npz, .safetensors, or a run's folder"
    parser.add_argument("--weights", type=Path, metavar="FILE", help=words)
    parser.add_argument("--data", metavar="NAME", help="data set whose validation images are shown to it")
    parser.add_argument(
        "--images", type=whole(0), default=1000, metavar="N", help="of these at most, 0: all; a run: all"
    )
    words = "of analysis/probes/NAME.py, all or none (default: shift, patch_shuffle, frequencies, calibration)"
    parser.add_argument("--probes", nargs="+", default=[], metavar="NAME", help=words)
    parser.add_argument("--img-size", type=size(4096), help="pixels, 32 or 32x64 (default: the data set's, or its own)")
    parser.add_argument("--num-classes", type=whole(2), metavar="N", help="(default: the data set's, or its own)")
    parser.add_argument("--in-chans", type=whole(1), metavar="N", help="(default: the data set's, or its own)")
    parser.add_argument(
        "--model-kwargs", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="more of them"
    )
    words = "by which its weights had images standardised, per channel, of pixels 0 to 1 (default: the data set's)"
    parser.add_argument("--mean", nargs="+", type=float, default=(), help=words)
    parser.add_argument("--std", nargs="+", type=float, default=(), help="the same")
    parser.add_argument("-b", "--batch-size", type=whole(1), help="for images/s and memory (default: the fastest)")
    parser.add_argument("--rounds", type=whole(1), default=5, metavar="N", help="timings of each kind")
    parser.add_argument("--no-speed", action="store_true", help="do not time it")
    words = "where the page goes (default: RESULTS/passports/WORD)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=words)
    add_debug(parser)
    add_fields(parser, How, only=("data_dir", "device", "workers", "threads"))
    return parser.parse()


if __name__ == "__main__":
    run_main(main)
