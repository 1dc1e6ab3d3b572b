"""Command lines from the fields of Run and How: timm's spelling, YAML below flags, one line for every mistake.

Importing this imports neither torch nor timm, so that --help answers at once.
"""

import argparse
import logging
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from archs.parts.family import FamilyError
from engine.cli import streams, timm_flags
from engine.errors import USAGE, Refusal
from engine.fields.values import home, nearest, pairs
from engine.run import How, Run, make_how, make_run, read_yaml

RECIPES = Path(__file__).parent.parent / "recipes"
ALIASES = {"batch_size": "-b", "workers": "-j", "model": "--arch"}
LISTS = {"keep_epochs": "EPOCH"}
WORDS = {"sbatch": "KEY=VALUE"}
PAIRS = {"opt_betas": ("B1", "B2"), "scale": ("MIN", "MAX"), "ratio": ("MIN", "MAX")}


class Parser(argparse.ArgumentParser):
    """argparse that refuses in one line, with the nearest flag, and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; see python {self.prog} --help")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Like parse_args; an unknown flag is a Refusal that names the nearest one.

        A leading ~ of a word, or after its first =, is a home, as an interactive shell would have it.
        """
        words = [_word(word) for word in (sys.argv[1:] if argv is None else argv)]
        known, extra = self.parse_known_args(words)
        if extra:
            flag = extra[0].partition("=")[0]
            flags = [option for parser in self._all() for option in parser._option_string_actions]
            if told := timm_flags.answer(flag, flags):
                raise Refusal(told)
            key = flag.replace("_", "-")
            close = key if key in flags else None if timm_flags.is_foreign(flag) else nearest(key, flags)
            hint = f"did you mean {close}?" if close else f"see python {self.prog} --help"
            if takers := [name for name, parser in self._commands() if flag in parser._option_string_actions]:
                hint = f"only {', '.join(takers)} {'take' if len(takers) > 1 else 'takes'} it"
            raise Refusal(f"unknown {'flag' if flag.startswith('-') else 'argument'} '{flag}'; {hint}")
        if vars(known).pop("loader", None):  # of older commands
            print("softmlp: --loader is gone: FFCV loads always, and gives the same pixels", file=sys.stderr)
        return known

    def _all(self) -> list[argparse.ArgumentParser]:
        return [self, *(parser for _, parser in self._commands())]

    def _commands(self) -> list[tuple[str, argparse.ArgumentParser]]:
        parts = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [pair for part in parts for pair in part.choices.items()]


class TimmFlags(argparse.Action):
    """Print what every flag of timm's train.py is here, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(timm_flags.table(parser._option_string_actions))
        parser.exit()


def add_fields(
    parser: argparse.ArgumentParser, kind: type[BaseModel], only: Sequence[str] | None = None, title: str = ""
) -> None:
    """One flag per field of Run, How or another model. A flag that is not given leaves no trace, so that YAML shows
    through."""
    usual = "what decides the result" if kind is Run else "what does not change the result"
    group = parser.add_argument_group(title or usual)
    for name, field in kind.model_fields.items():
        if name == "scheme" or (only is not None and name not in only):  # kept with a run, never chosen
            continue
        names = [f"--{name.replace('_', '-')}", *([ALIASES[name]] if name in ALIASES else [])]
        default = "" if field.default in (None, {}, ()) else f" (default: {field.default})"
        common = {"dest": name, "default": argparse.SUPPRESS, "help": f"{field.description}{default}"}
        choices = _choices(field.annotation)
        if field.annotation is bool:
            parser_action: Any = argparse.BooleanOptionalAction
            group.add_argument(*names, action=parser_action, **common)
        elif name == "model_kwargs":
            group.add_argument(*names, nargs="*", action="extend", metavar="KEY=VALUE", **common)
        elif name in WORDS:
            group.add_argument(*names, nargs="+", action="extend", metavar=WORDS[name], **common)
        elif name in LISTS:
            group.add_argument(*names, nargs="+", type=int, metavar=LISTS[name], **common)
        elif name in PAIRS:
            group.add_argument(*names, nargs=2, type=float, metavar=PAIRS[name], **common)
        else:
            metavar = "{" + ",".join(choices) + "}" if choices else name.rpartition("_")[2].upper()
            group.add_argument(*names, metavar=metavar, **common)
    if kind is How and (only is None or "workers" in only):
        group.add_argument("--loader", choices=("ffcv", "memory"), default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback for a mistake of the user's, too")


def add_config(parser: argparse.ArgumentParser) -> None:
    words = "YAML of any of these, or NAME of engine/recipes/NAME.yaml; flags win"
    parser.add_argument("-c", "--config", type=find_config, default=argparse.SUPPRESS, help=words)


def find_config(word: str) -> Path:
    """A path; or, of a word without slash and suffix, the recipe of that name. Raises Refusal, naming the nearest."""
    if "/" in word or Path(word).suffix:
        return Path(word)
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if word not in names:
        close = nearest(word.replace("-", "_"), names)
        hint = f"did you mean '{close}'? " if close else ""
        raise Refusal(f"unknown recipe '{word}'; {hint}known: {', '.join(names)}; a file of yours: ./{word}")
    return RECIPES / f"{word}.yaml"


def collect(namespace: argparse.Namespace) -> tuple[Run, How]:
    """Run and How from the flags given, above the YAML file of -c, above the defaults."""
    given = vars(namespace)
    where, fields = "", {}
    if "config" in given:
        where = str(given["config"])
        fields = read_yaml(given["config"])
        split(fields, where)  # what is wrong in the file is said of the file
    flags = {key: value for key, value in given.items() if key in Run.model_fields or key in How.model_fields}
    if "model_kwargs" in flags:
        flags["model_kwargs"] = {**(fields.get("model_kwargs") or {}), **pairs(flags["model_kwargs"], "--model-kwargs")}
    return split({**fields, **flags})


def split(fields: dict[str, Any], where: str = "") -> tuple[Run, How]:
    """Fields of both kinds, validated."""
    how = {key: value for key, value in fields.items() if key in How.model_fields}
    run = {key: value for key, value in fields.items() if key not in How.model_fields}
    return make_run(run, where), make_how(how, where)


def run_main(main: Callable[[], int | None], debug: bool = False, *, prints: bool = True) -> NoReturn:
    """Run a script's main: a Refusal or FamilyError is one line on stderr and its exit code; Ctrl-C is 130.

    Args:
        prints: whether what it prints is what it is for; if not, it goes on where nothing can be printed.
    """
    # With a CUDA toolkit and no GPU, importing torch's extension builder warns about something nobody asked for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    streams.in_utf8()
    streams.mend(prints)
    try:
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code or 0
            streams.want(code == 0)  # --help, which was all that was asked for
        streams.finish()
    except (Refusal, FamilyError) as refusal:
        if debug or "--debug" in sys.argv:
            raise
        print(f"softmlp: {refusal}", file=sys.stderr)
        code = getattr(refusal, "code", USAGE)
    except KeyboardInterrupt:
        print("softmlp: interrupted; repeat the command to go on", file=sys.stderr)
        code = 130
    streams.leave()
    sys.exit(code)


def show(table: Any) -> None:
    """Print a rich table; in a file or a pipe it is not squeezed into 80 columns."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _word(word: str) -> str:
    """A word of the command line with its home. Raises Refusal for bytes that are no text, which no file could keep."""
    try:
        word.encode()
    except UnicodeEncodeError:
        shown = word.encode(errors="backslashreplace").decode()
        raise Refusal(f"the argument '{shown}' has bytes that are no UTF-8; spell or rename it in UTF-8") from None
    key, equals, text = word.partition("=")
    return f"{key}={home(text)}" if equals and not key.startswith("~") else home(word)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(annotation) for choice in _choices(part)]
    return (
        [str(choice) for choice in typing.get_args(annotation)]
        if typing.get_origin(annotation) is typing.Literal
        else []
    )
