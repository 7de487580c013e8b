"""What judges say of responses, and the figures of every task, in an evaluation."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eval.results.grading import summarize_judged
from eval.results.rows import Row
from utils.data.records import Prompt
from utils.models.configs import DTYPES
from utils.process.distributed import device
from utils.process.errors import UserError
from utils.scoring.scorers import Scored
from utils.scoring.tasks import Task, asked_by_task, read_tasks
from utils.scoring.verdicts import Judge, Replies, all_verdicts

Verdict = bool | None  # None: it does not judge the response


def tasks_of(args: argparse.Namespace, judges: Sequence[Judge], runs: Mapping[str, list[Row]]) -> list[Task]:
    """The tasks of `--tasks`, if it is given.

    Raises:
        UserError: see `read_tasks`; a row says no task, or one that there is not.
    """
    if not args.tasks:
        return []
    tasks = read_tasks(args.tasks, None, [judge.name for judge in judges])
    names = [task.name for task in tasks]
    for run, rows in runs.items():
        for row in rows:
            if row.get("task") not in names:
                found = "is of no task" if "task" not in row else f"is of the task {row['task']!r}, which there is not"
                advice = "" if "task" in row else ": eval/generate.py --tasks tells it"
                raise UserError(f"--responses {run}: the response to {row['source']} {found}{advice}")
    return tasks


def judge_rows(rows: list[Row], judges: Sequence[Judge], tasks: Sequence[Task]) -> None:
    """Write what each judge says, and all of them, into `verdicts` of every row; judges with a model are loaded.

    Args:
        tasks: whose judges are asked of their rows alone; without, each of all.
    """
    replies = Replies([prompt_of(row) for row in rows], [row["response"] for row in rows])
    asked = asked_by_task(tasks, [row["task"] for row in rows]) if tasks else None
    found = all_verdicts(judges, replies, scored_of(rows), asked)
    for name, verdicts in found.items():
        for row, passed, judged in zip(rows, verdicts.passed.tolist(), verdicts.judged.tolist(), strict=True):
            row.setdefault("verdicts", {})[name] = bool(passed) if judged else None


def try_judges(judges: Sequence[Judge], tasks: Sequence[Task], runs: Mapping[str, list[Row]]) -> None:
    """Raises: UserError: a judge cannot judge the responses that it is asked of; before models are loaded."""
    rows = next(iter(runs.values()))
    asked = asked_by_task(tasks, [row["task"] for row in rows]) if tasks else {}
    for judge in judges:
        is_asked = asked.get(judge.name, [False] * len(rows)) if tasks else [True] * len(rows)
        if prompts := [prompt_of(row) for row, there in zip(rows, is_asked, strict=True) if there]:
            judge.try_out(prompts)


def prompt_of(row: Row) -> Prompt:
    return Prompt(row["messages"], row["source"], tuple(row.get("instructions", ())))


def loaded_judges(judges: Sequence[Judge], args: argparse.Namespace) -> list[Judge]:
    """Those that have a model with it."""
    return [judge.loaded_alone(DTYPES[args.dtype], args.batch_size) for judge in judges]


def scored_of(rows: Sequence[Row]) -> dict[str, Scored]:
    """{objective: its values of every row}, as a threshold reads them."""
    columns = {name: [row["scores"][name] for row in rows] for name in rows[0]["scores"]}
    tensor = lambda values: torch.tensor(values, dtype=torch.float32, device=device())
    return {
        name: Scored(tensor([value or 0.0 for value in column]), tensor([value is not None for value in column]))
        for name, column in columns.items()
    }


def summarize_verdicts(rows: Sequence[Row]) -> dict[str, Any]:
    """{judge: the share of responses that it passes, of those that it judges, with its interval}.

    The half-width is that of Agresti and Coull, which is not 0 where all pass, or none does.
    """
    found = {}
    for name in rows[0].get("verdicts", {}):
        column = [row["verdicts"][name] for row in rows]
        if entry := summarize_judged(column):
            count = entry.get("judged", len(column))
            share = (entry["mean"] * count + 2) / (count + 4)
            found[name] = entry | {"ci95": 1.96 * math.sqrt(share * (1 - share) / (count + 4))}
    return found


def summarize_tasks(rows: Sequence[Row], tasks: Sequence[Task]) -> dict[str, Any]:
    """{task: its prompts, the reward of their responses, model and gold scores, and what judges pass}."""
    found = {}
    for task in tasks:
        own = [row for row in rows if row["task"] == task.name]
        if not own:
            continue
        parts = {"objectives": "scores", **({"gold": "gold"} if "gold" in own[0] else {})}
        figures = {key: summarize_columns([row[part] for row in own]) for key, part in parts.items()}
        found[task.name] = {"prompts": len(own), "rewards": dict(task.objectives), **figures}
        found[task.name] |= {"judges": summarize_verdicts(own)}
    return found


def summarize_columns(entries: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """{name: mean and interval of what is judged}."""
    columns = {name: [entry[name] for entry in entries] for name in entries[0]}
    return {name: summary for name, column in columns.items() if (summary := summarize_judged(column))}
