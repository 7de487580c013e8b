"""`--config FILE`: flags of a command line from a YAML or JSON file, such as the args.json that a run leaves behind.

What the file says becomes words of the command line, so that types, checks and errors are those of the flags. Numbers
stay the text that was written: 1e-6, 010 and 1:30 mean what they mean as words.
"""

import argparse
import copy
import difflib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.process.errors import UserError

if TYPE_CHECKING:
    import yaml

FLAG = "--config"
TAKEN_BACK = "null"  # --NAME=null on the command line: as if the file had nothing of it
CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}  # YAML, where they are not quoted

Value = None | bool | str | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True)
class ConfigFile:
    """A file of flags; `values` by their names without dashes."""

    path: Path
    values: dict[str, Value]

    def refuse_unknown(self, known: Collection[str], prog: str) -> None:
        """Raise UserError for a key that is none of `known`, with the one that is most like it."""
        for key in self.values:
            if key not in known:
                raise UserError(f"{self.path}: {key}: {prog} has no such flag{did_you_mean(key, known)}")

    def words(self, actions: dict[str, argparse.Action]) -> list[str]:
        """The words of a command line that stand for the values of these flags, {name: flag}; others are left out.

        Raises:
            UserError: a flag does not take its value; names file and key.
        """
        words = []
        for key, value in self.values.items():
            if key not in actions:
                continue
            try:
                own = words_of(f"--{key}", actions[key], value)
                check_words(actions[key], own)
            except argparse.ArgumentError as error:
                raise UserError(f"{self.path}: {key}: {error.message}") from None
            words += own
        return words


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' with the known name that is most like this one, if any is."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


# --- the command line


def split_off_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The file that --config names, if it does, and the other words.

    Raises:
        UserError: no file is named, or several are.
    """
    end = end_of_flags(words)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument(FLAG, action="append", default=[])
    try:
        found, others = finder.parse_known_args(words[:end])
    except argparse.ArgumentError as error:
        raise UserError(f"{FLAG}: {error.message}") from None
    if len(found.config) > 1:
        raise UserError(f"{FLAG}: is given {len(found.config)} times")
    return next(iter(found.config), None), others + list(words[end:])


def add_to_command_line(words: list[str], more: list[str]) -> list[str]:
    """`more` flags behind those that are there; none of them takes the words after it for its values."""
    end = end_of_flags(words)
    return words[:end] + more + words[end:]


def end_of_flags(words: Sequence[str]) -> int:
    return list(words).index("--") if "--" in words else len(words)


def flags_among(words: Sequence[str], known: Collection[str]) -> set[str]:
    """Which of the known flags a command line gives, or takes back."""
    return {name for word in words[: end_of_flags(words)] if (name := word.partition("=")[0]) in known}


def without_taken_back(words: list[str], known: Collection[str]) -> list[str]:
    """The command line without its --NAME=null of known flags."""
    end, taken_back = end_of_flags(words), {f"{name}={TAKEN_BACK}" for name in known}
    return [word for word in words[:end] if word not in taken_back] + words[end:]


# --- values and words


def words_of(flag: str, action: argparse.Action, value: Value) -> list[str]:
    """A flag and its values as on a command line; none for null, false and [], as if it were not given.

    Args:
        value: a text; true for a switch, or for a flag whose value may be left out; a list of texts; NAME=VALUE also as
            {name: value} and as [[name, value]].

    Raises:
        argparse.ArgumentError: such a flag takes something else.
    """
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise argparse.ArgumentError(action, f"is a switch: true or false, not {json.dumps(value)}")
        return [flag] if value else []
    if action.nargs == argparse.OPTIONAL and isinstance(value, bool):
        return [flag] if value else []
    texts = texts_of(action, value)
    if action.nargs is not None:
        return [flag, *texts] if texts else []
    if len(texts) > 1 and not isinstance(action, argparse._AppendAction):
        raise argparse.ArgumentError(action, f"takes one value, not {len(texts)}")
    return [f"{flag}={text}" for text in texts]


def texts_of(action: argparse.Action, value: Value) -> list[str]:
    """Every value as a word. Raises: argparse.ArgumentError: something that cannot be one."""
    match value:
        case str():
            return [value]
        case dict():
            return [f"{name}={text_of(action, item)}" for name, item in value.items()]
        case [*items]:
            return [text for item in items for text in texts_of_item(action, item)]
    raise argparse.ArgumentError(action, f"takes a value, not {json.dumps(value)}")


def texts_of_item(action: argparse.Action, item: Value) -> list[str]:
    match item:
        case [str(name), value]:
            return [f"{name}={text_of(action, value)}"]
        case dict():
            return texts_of(action, item)
    return [text_of(action, item)]


def text_of(action: argparse.Action, value: Value) -> str:
    if not isinstance(value, str):
        raise argparse.ArgumentError(action, f"{json.dumps(value)} cannot be one of its values")
    return value


def check_words(action: argparse.Action, words: list[str]) -> None:
    """Raise argparse.ArgumentError for words of a flag that it does not take."""
    alone = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    alone._add_action(copy.copy(action))
    if words and (rest := alone.parse_known_args(words)[1]):
        raise argparse.ArgumentError(action, f"{rest[0]!r} cannot be one of its values")


# --- the file


def read_config(path: str) -> ConfigFile:
    """Raises: UserError: no such file, not UTF-8, not JSON (*.json) or YAML (others), no mapping, a key given twice."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{FLAG} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{FLAG} {path}: the text is not UTF-8") from None
    try:
        values = parse_json(text) if path.endswith(".json") else parse_yaml(text)
    except RecursionError:
        raise UserError(f"{FLAG} {path}: is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{FLAG} {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{FLAG} {path}: a mapping of flags to values is expected")
    try:
        return ConfigFile(Path(path), mapping((key.removeprefix("--"), value) for key, value in values.items()))
    except ValueError as error:
        raise UserError(f"{FLAG} {path}: {error}") from None


def mapping(pairs: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """A dictionary. Raises: ValueError: a key is given twice."""
    found: dict[str, Value] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key}: is given twice")
        found[key] = value
    return found


def parse_json(text: str) -> Value:
    """Raises: ValueError: where it is not JSON, or see `mapping`."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: not valid JSON ({error.msg})") from None


def parse_yaml(text: str) -> Value:
    """Raises: ValueError: where it is not YAML, or see `value_of`."""
    import yaml  # few command lines name a file

    try:
        return value_of(yaml.compose(text, Loader=yaml.BaseLoader))
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"line {error.problem_mark.line + 1}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from None


def value_of(node: "yaml.Node | None") -> Value:
    """A YAML node without YAML's own idea of numbers, dates, yes and no. Raises: ValueError: see `mapping`."""
    match node and node.id, node and node.value:
        case None, _:
            return None
        case "scalar", text:
            return CONSTANTS.get(text.lower(), text) if node.style is None else text
        case "sequence", items:
            return [value_of(item) for item in items]
        case _, pairs:
            return mapping((key_of(key), value_of(value)) for key, value in pairs)


def key_of(node: "yaml.Node") -> str:
    """Raises: ValueError: something other than a name."""
    if node.id != "scalar":
        raise ValueError(f"line {node.start_mark.line + 1}: a key is no name")
    return node.value
