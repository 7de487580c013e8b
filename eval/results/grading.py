"""Gold scores, and statistics of values."""

import math
import statistics
from collections.abc import Callable, Sequence

from eval.results.rows import Row
from utils.cli.plugins import load_function
from utils.models.configs import first_line
from utils.process.errors import UserError

Gold = Callable[[list[str], list[str]], dict[str, list[float]]]


def load_gold(spec: str) -> Gold:
    """The function that 'module:function' names.

    Raises:
        UserError: there is no such module or function, or it fails to be imported.
    """
    return load_function(spec, f"--gold {spec}")


def grade(gold: Gold, spec: str, rows: list[Row]) -> dict[str, list[float]]:
    """{objective: the gold value of every row}.

    Raises:
        UserError: the function fails, or does not give one finite number a response.
    """
    try:
        found = gold([row["prompt"] for row in rows], [row["response"] for row in rows])
        graded = {str(name): [float(value) for value in values] for name, values in found.items()}
    except (Exception, SystemExit) as error:  # a function of the user's may raise, and return, anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"--gold {spec}: cannot grade (prompts, responses) ({reason})") from error
    for name, values in graded.items():
        if len(values) != len(rows):
            raise UserError(f"--gold {spec}: {len(values)} values of {name} for {len(rows)} responses")
        check_values(rows, name, values, f"--gold {spec}")
    return graded


def score_gold(gold: Gold, spec: str, runs: dict[str, list[Row]]) -> None:
    """Write the gold values into `gold` of every row.

    Raises:
        UserError: see `grade`.
    """
    for rows in runs.values():
        for name, values in grade(gold, spec, rows).items():
            for row, value in zip(rows, values, strict=True):
                row.setdefault("gold", {})[name] = value


def check_values(rows: list[Row], name: str, values: Sequence[float | None], flag: str) -> None:
    """Raises: UserError: a value is not finite; None, where there is no judgement, is none."""
    for row, value in zip(rows, values, strict=True):
        if value is not None and not math.isfinite(value):
            raise UserError(f"{flag}: the score of {name} is {value} on the response to {row['source']}")


def mean_and_interval(values: list[float]) -> dict[str, float]:
    """Mean and half-width of its normal 95% interval; a single value has no spread to judge by and gets 0."""
    half_width = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "ci95": half_width}


def summarize_judged(values: Sequence[float | None]) -> dict[str, float] | None:
    """`mean_and_interval` of what is judged, and how many that is ('judged') where it is not all; None of nothing."""
    judged = [value for value in values if value is not None]
    if not judged:
        return None
    return mean_and_interval(judged) | ({"judged": len(judged)} if len(judged) < len(values) else {})
