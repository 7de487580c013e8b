"""The objectives that policies were trained with, as their args.json records them.

eval/score.py takes them where its command line names none. Paths in them count from the current directory, as on a
command line.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results.runs import find_args_file, read_json_object
from eval.results.shapes import TEXT, Leaf, Maybe
from utils.cli.types import named_value
from utils.process.errors import UserError
from utils.scoring.objectives import NONE_GIVEN, OBJECTIVE_FLAGS, Objective, named_objectives

ADVICE = "name the objectives with flags"
PAIRS = Leaf(
    "pairs of a name and a text",
    lambda value: (
        isinstance(value, list)
        and all(isinstance(item, list) and len(item) == 2 and all(map(TEXT.holds, item)) for item in value)
    ),
)
Pairs = dict[str, list[tuple[str, str]]]  # {flag: what is named by it}, like the arguments of a command line


@dataclass(frozen=True)
class Trained:
    """What a run's args.json says of its objectives."""

    run: str
    file: Path
    pairs: Pairs

    def words(self) -> dict[str, str]:
        """Every objective's flags as on a command line, by name."""
        words: dict[str, str] = {}
        for flag, pairs in self.pairs.items():
            for name, value in pairs:
                words[name] = f"{words.get(name, '')} --{flag} {name}={value}".strip()
        return words

    def places(self) -> dict[str, set[tuple[str, str]]]:
        """The same to be compared: a path that is there may be written in many ways."""
        places: dict[str, set[tuple[str, str]]] = {}
        for flag, pairs in self.pairs.items():
            for name, value in pairs:
                places.setdefault(name, set()).add((flag, value if flag == "score_label" else absolute(value)))
        return places


def absolute(value: str) -> str:
    """A path, or a file's function, from the root on; as it is if nothing is there: a hub name, or a module."""
    path, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    return f"{Path(path).resolve()}{colon}{function}" if Path(path).exists() else value


def trained_objectives(args: argparse.Namespace, root: Path, runs: list[str]) -> list[Objective]:
    """The objectives of all runs that were trained with some; says which.

    Args:
        args: of eval/score.py, without objectives.
        root: the folder with policies/.

    Raises:
        UserError: there are none, two runs have others, one is not there any more, or is code in a model's folder.
    """
    found = [trained for run in runs if (trained := read_trained(root, run))]
    if not found:
        raise UserError(f"{NONE_GIVEN}; no args.json of {', '.join(runs)} in {root}/policies has any")
    first, *others = found
    for other in others:
        check_alike(first, other)
    if not args.trust_remote_code:
        for trained in found:
            check_code(trained)
    print(f"objectives of {first.run} ({first.file}): {' '.join(first.words().values())}", flush=True)
    try:
        return named_objectives(argparse.Namespace(**vars(args) | first.pairs))
    except UserError as error:
        raise UserError(f"{first.file}: {error} (paths count from {Path.cwd()}; or {ADVICE})") from None


def read_trained(root: Path, run: str) -> Trained | None:
    """A run's objectives; None where it was trained without, like the SFT policy.

    Raises:
        UserError: an args.json that holds something else there.
    """
    file = find_args_file(root, run)
    settings = read_json_object(file, dict.fromkeys(OBJECTIVE_FLAGS, Maybe(PAIRS))) if file else {}
    pairs = {flag: [checked(pair, file) for pair in settings.get(flag) or []] for flag in OBJECTIVE_FLAGS}
    return Trained(run, file, pairs) if any(pairs.values()) else None


def checked(pair: list[str], file: Path) -> Any:
    """(name, value) as the command line would take it. Raises: UserError: it would not."""
    try:
        return named_value("=".join(pair))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{file}: {error}") from None


def check_alike(first: Trained, other: Trained) -> None:
    """Raises: UserError: two runs were trained with different objectives."""
    places, others = first.places(), other.places()
    for name in places | others:
        if places.get(name) != others.get(name):
            ours, theirs = (trained.words().get(name, f"no {name}") for trained in (first, other))
            raise UserError(
                f"--responses: {first.run} and {other.run} have other objectives ({first.run}: {ours};"
                f" {other.run}: {theirs}); {ADVICE}"
            )


def check_code(trained: Trained) -> None:
    """Raises: UserError: a function is code that lies in the policy's own folder, which may be somebody else's."""
    folder, here = trained.file.parent.resolve(), Path(__file__).resolve().parents[2]
    for name, value in trained.pairs["reward_function"]:
        module = value.rpartition(":")[0]
        path = module if module.endswith(".py") else module.replace(".", "/")
        if any((start / path).resolve().is_relative_to(folder) for start in (Path.cwd(), here)):
            raise UserError(
                f"{trained.file}: the function of {name}, {value}, is code of the model's folder: --trust_remote_code"
                f" runs it; or {ADVICE}"
            )
