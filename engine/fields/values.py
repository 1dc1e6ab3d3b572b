"""What users write: values of flags and grids, and YAML files. One reading of all of them, in one line where it fails.

It is YAML 1.1 as PyYAML reads it, with these differences: `1e-3` and `1.5e3` are numbers, a date is text, a key that
stands twice in one mapping is refused at any depth, and text that begins with `~` names a home, as a shell would read
it. Standard library and PyYAML only.
"""

import codecs
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from engine.errors import Refusal

_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_OTHERS = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the differences above."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, rule) for tag, rule in rules if tag not in _OTHERS]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = (key_node.tag, str(key_node.value)), key_node.start_mark.line + 1
            if key in lines:
                told = f"key '{key_node.value}' was given in line {lines[key]} already"
                raise yaml.constructor.ConstructorError(None, None, told, key_node.start_mark)
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return home(self.construct_scalar(node))


_Loader.add_implicit_resolver(_OTHERS[0], _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def value(text: str, where: str) -> Any:
    """The value of a flag; `0,2,4` is a list of numbers. Raises Refusal, headed by `where`, for what is no YAML."""
    numbers = text.split(",")
    if len(numbers) > 1 and all(_is_number(number) for number in numbers):
        text = f"[{text}]"
    return _load(text, where)


def values(text: str, where: str) -> list[Any]:
    """The values of `1e-3,3e-3`; one that is a list itself is written [0.9,0.99]. Raises Refusal as `value`."""
    return _load(f"[{text}]", where)


def pairs(words: Sequence[str], flag: str) -> dict[str, Any]:
    """`depth=12 token_ratio=0.5` as a dict. Raises Refusal: no key=value, a key twice, a value that is no YAML."""
    result: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise Refusal(f"{flag} takes key=value, not '{word}'")
        if key in result:
            raise Refusal(f"{flag} gives {key} twice; leave one out")
        result[key] = value(text, f"{flag} {word!r}")
    return result


def read(path: Path) -> tuple[dict[Any, Any], dict[Any, int]]:
    """A file of `key: value` lines, and the line of each key at its top.

    Raises Refusal naming the file and, where known, the line: it cannot be read, or is no YAML, or no mapping.
    """
    text = decode(path)
    fields = _load(text, str(path), lines=True)
    if fields is None:
        return {}, {}
    if not isinstance(fields, dict):
        raise Refusal(f"{path}: expected 'key: value' lines")
    nodes = yaml.compose(text, Loader=_Loader).value
    return fields, {key.value: key.start_mark.line + 1 for key, _ in nodes}


def decode(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 that say so by their mark. Raises Refusal otherwise."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"byte 0x{data[error.start]:02x} is no {encoding.removesuffix('-sig').upper()}"
        raise Refusal(f"{path} line {line}: {what}; save the file as UTF-8") from None
    if "\0" in text:
        raise Refusal(f"{path}: zero bytes, as in UTF-16 without its mark; save the file as UTF-8")
    return text


def home(text: str) -> str:
    """A leading ~ or ~user as the home that it names; any other text as it is."""
    return os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111 - Path's raises for no such user


def folder(variable: str, default: Path) -> Path:
    """The path that an environment variable holds; the default where it is not set, or empty."""
    return Path(home(os.environ.get(variable) or str(default)))


def _is_number(text: str) -> bool:
    return bool(_FLOAT.match(text.strip()) or re.fullmatch(r"[-+]?[0-9]+", text.strip()))


def _load(text: str, where: str, lines: bool = False) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark and lines else ""
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())
        told = problem if problem.startswith("key '") else f"not YAML: {problem}"
        raise Refusal(f"{where}{line}: {told}") from None
    except (ValueError, OverflowError) as error:  # 0b_, say, looks like a number and is none
        raise Refusal(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise Refusal(f"{where}: not YAML that can be read: nested too deeply") from None


def unknown(kind: str, word: str, known: Any) -> str:
    """One line for a misspelling: unknown key 'modle'; did you mean 'model'?"""
    close = nearest(word.replace("-", "_"), known)
    return f"unknown {kind} '{word}'" + (f"; did you mean '{close}'?" if close else f"; known: {', '.join(known)}")


def nearest(word: str, known: Any) -> str | None:
    """The likeliest intended word; two letters swapped ('modle') are likelier than one left out ('mode')."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return next((other for other in close if sorted(other) == sorted(word)), close[0] if close else None)
