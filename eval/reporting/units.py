"""In which units objectives are scored, and so what may be averaged; which of them says when a response is harmless.

Score models, of rewards and of costs, are trained on preferences: their scores are logits. A function returns what it
likes. Which of them an objective is, stands in the evaluation ("scored").
"""

from collections.abc import Iterable, Sequence

from eval.results.runs import Run

HARMLESS = "harmlessness"  # the name of the cost that a column calls by its usual name


def objective_kinds(runs: Iterable[Run]) -> dict[str, str]:
    """{objective: 'reward', 'cost' or 'function'}, of those whose evaluation tells; of runs or groups of runs."""
    kinds: dict[str, str] = {}
    for seed in (seed for run in runs for seed in getattr(run, "runs", [run])):
        for name, scorer in ((seed.evaluation.get("scored") or {}).get("objectives") or {}).items():
            kinds.setdefault(name, scorer.get("kind"))
    return kinds


def share_a_unit(names: Sequence[str], runs: Iterable[Run]) -> bool:
    """Whether the mean over these objectives means something: there is one, or none is a function."""
    kinds = objective_kinds(runs)
    return len(names) < 2 or all(kinds.get(name) != "function" for name in names)


def harmless_title(runs: Iterable[Run]) -> str:
    """What to call the share of the responses whose cost is negative; nothing where no run has one."""
    runs = list(runs)
    if all(run.evaluation.get("harmless_ratio") is None for run in runs):
        return ""
    cost = next((name for name, kind in objective_kinds(runs).items() if kind == "cost"), HARMLESS)
    return "harmless %" if cost == HARMLESS else f"{cost} > 0, %"
