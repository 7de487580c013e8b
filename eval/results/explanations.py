"""Why a score model with a gate gave its scores: what its attributes contributed, to responses and on average.

The contributions to an objective's value, costs with their sign changed, add up to it (but for the mean that a reward
is centered by). An explanation is JSON: 'rows' has of every response the largest contributions, [[attribute,
contribution]], 'attributes' the mean and its interval of every attribute.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from eval.results.grading import mean_and_interval
from utils.cli.types import positive_int
from utils.process.plain_text import printable
from utils.scoring.objectives import Objective

SHOWN = 3
Contributions = dict[str, list[float]]  # {attribute: of every response}
Explanation = dict[str, Any]


def add_explain_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--explain",
        type=positive_int,
        nargs="?",
        const=SHOWN,
        metavar="K",
        help="of scores that a model's gate makes of several attributes (ArmoRM): the K attributes that contribute most"
        f" to each, by absolute value; {SHOWN} where only the flag is given",
    )


def shown_of(objective: Objective, explain: int | None) -> int:
    """How many contributions to an objective's values `--explain` asks for."""
    return explain if explain and objective.has_gate else 0


def note_unexplained(objectives: Sequence[Objective], explain: int | None) -> None:
    """Say so where `--explain` is given and no objective has anything to explain."""
    if explain and not any(objective.has_gate for objective in objectives):
        names = f"of {', '.join(objective.name for objective in objectives)}" if objectives else "without objectives"
        print(f"note: --explain: nothing to explain {names}: no model's gate makes a score of several attributes")


def largest(contributions: Contributions, count: int) -> list[list[tuple[str, float]]]:
    """Of every response the `count` largest contributions by absolute value, from the largest on."""
    responses = (zip(contributions, row, strict=True) for row in zip(*contributions.values(), strict=True))
    return [sorted(parts, key=lambda part: abs(part[1]), reverse=True)[:count] for parts in responses]


def explain(contributions: Contributions, count: int) -> Explanation:
    """The explanation with so many contributions a response."""
    means = {attribute: mean_and_interval(values) for attribute, values in contributions.items()}
    return {"rows": largest(contributions, count), "attributes": means}


def shown_in(explanation: Explanation | None) -> int:
    """How many contributions a response has in it."""
    return len(explanation["rows"][0]) if explanation else 0


def suffices(explanation: Explanation | None, count: int) -> bool:
    """Whether it has so many contributions a response, or all that there are."""
    there_are = len(explanation["attributes"]) if explanation else count
    return shown_in(explanation) >= min(count, there_are)


def find_explanation(result: dict[str, Any], objective: str) -> Explanation | None:
    """The explanation of an objective in a result of eval/score.py, if it has one; raises what its shape causes."""
    if objective not in result.get("explanations", {}):
        return None
    rows = [[(str(name), float(value)) for name, value in row["explanations"][objective]] for row in result["rows"]]
    entries = result["explanations"][objective]
    means = {name: {key: float(entry[key]) for key in ("mean", "ci95")} for name, entry in entries.items()}
    return {"rows": rows, "attributes": means}


def reason(objective: str, parts: list[tuple[str, float]]) -> str:
    """'why helpful: truthfulness +0.31 · verbosity -0.12', with a third decimal where all are small."""
    decimals = 2 if abs(parts[0][1]) >= 0.1 else 3
    shown = (f"{one_line(attribute)} {value:+.{decimals}f}" for attribute, value in parts)
    return f"why {objective}: {' · '.join(shown)}"


def one_line(attribute: str) -> str:
    """An attribute's name, which may be any text, to be shown."""
    return " ".join(printable(attribute).split())
