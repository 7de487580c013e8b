"""Tasks: disjoint sets of prompts, each with what its responses are worth and which judges they must pass.

They are CGPO's (arXiv 2409.20370), in a file of JSON:

    {"howto": {"prompts": {"risky": false}, "objectives": "helpfulness", "judges": ["answers"], "responses": 8},
     "risky": {"prompts": "risky.jsonl:0.5", "objectives": {"harmlessness": 1, "helpfulness": 0.2}, "judges": ["safe"],
               "kl_max": 10, "weight": 2, "share": 0.3}}
"""

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.cli.types import safe_name
from utils.data import ReadingSummary, load_prompts
from utils.data.records import Prompt, conversation_key
from utils.process.distributed import print_main
from utils.process.errors import UserError

FLAG = "--tasks"
HELP = (
    "file of JSON, {NAME: {prompts: PATH[:fraction][,...], or {FIELD: VALUE} of the rows of --data; objectives: NAME,"
    " or {NAME: WEIGHT} of their weighted sum; judges: [NAME, ...]; and as one likes: responses (to each prompt),"
    " kl_max, weight (rho of its gradient), share (of a rollout's prompts)}}"
)
Place = str | tuple[str, Any]


@dataclass(frozen=True)
class Task:
    """One set of prompts.

    Attributes:
        prompts: files, or (field, value) of the rows of `--data`.
        objectives: {name: weight}; the reward of a response is their weighted sum.
        judges: names; a response fails that any of them fails.
        responses: K, to each prompt.
        kl_max: the most log π(y|x) − log π₀(y|x) of a response, in nats.
        weight: ρ of the task's gradient; only their ratios count.
        share: of a rollout's prompts; None: that of all prompts.
    """

    name: str
    prompts: Place
    objectives: Mapping[str, float]
    judges: Sequence[str] = ()
    responses: int = 1
    kl_max: float = math.inf
    weight: float = 1.0
    share: float | None = None

    @property
    def place(self) -> str:
        """What an error message says before what is wrong with it."""
        return f"{FLAG}: {self.name}"


def asked_by_task(tasks: Sequence[Task], of_rows: Sequence[str]) -> dict[str, list[bool]]:
    """{judge: whether it is asked of each row}, for the task of each; of a row of no task none is."""
    judges = {task.name: task.judges for task in tasks}
    names = dict.fromkeys(name for task in tasks for name in task.judges)
    return {name: [name in judges.get(task, ()) for task in of_rows] for name in names}


def add_tasks_argument(parser: argparse._ActionsContainer, what: str) -> None:
    """`--tasks` of an evaluation; `what` it is for."""
    parser.add_argument(FLAG, metavar="FILE", help=f"{what} (the file of step 3's {FLAG})")


# --- from the file


def read_tasks(
    path: str,
    objectives: Sequence[str] | None,
    judges: Sequence[str] | None,
    responses: int = 1,
    kl_max: float = math.inf,
) -> list[Task]:
    """The tasks of a file, in its order.

    Args:
        objectives, judges: names of those that there are; None: any.
        responses, kl_max: of tasks that do not say.

    Raises:
        UserError: the file is unreadable, or has something else in it than what `Task` says; shares do not sum to 1.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=without_doubles)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{FLAG} {path}: cannot be read ({reason})") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{FLAG} {path}: must be an object with a task under each name")
    defaults = {"responses": responses, "kl_max": kl_max}
    tasks = [task_of(name, entries, objectives, judges, defaults) for name, entries in found.items()]
    places = [(task.prompts[0], written(task.prompts[1])) for task in tasks if not isinstance(task.prompts, str)]
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"{FLAG}: several tasks have the prompts whose field '{twice[0][0]}' is {twice[0][1]}")
    if len(fields := dict.fromkeys(field for field, _ in places)) > 1:
        raise UserError(
            f"{FLAG}: one field of the rows tells the task of each, not {' in one task, '.join(fields)} in another"
        )
    shares = [task.share for task in tasks]
    if None in shares and any(shares):
        raise UserError(f"{FLAG}: {tasks[shares.index(None)].name} has no share of a rollout, others have")
    if None not in shares and abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"{FLAG}: the shares sum to {sum(shares):g}, not 1")
    return tasks


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError where it has a key twice, of which the first would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def task_of(
    name: str,
    entries: Any,
    objectives: Sequence[str] | None,
    judges: Sequence[str] | None,
    defaults: Mapping[str, Any],
) -> Task:
    """A task of a file; raises UserError for what is wrong with it."""
    place = f"{FLAG}: {name}"
    try:
        safe_name(name)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{FLAG}: {error}") from None
    if not isinstance(entries, dict):
        raise UserError(f"{place}: must be an object, found {entries!r}")
    if unknown := [key for key in entries if key not in READERS]:
        raise UserError(f"{place}: no such entry as {unknown[0]} (there are {', '.join(READERS)})")
    for needed in ("prompts", "objectives"):
        if not entries.get(needed):
            raise UserError(f"{place}: has no {needed}")
    values = dict(defaults)
    for key, value in entries.items():
        expected, read = READERS[key]
        values[key] = read(value)
        if values[key] is None:
            raise UserError(f"{place}: {key} must be {expected}, found {json.dumps(value)}")
    task = Task(name, **values)
    for kind, named, known in (("objective", task.objectives, objectives), ("judge", task.judges, judges)):
        if unknown := [one for one in named if known is not None and one not in known]:
            raise UserError(f"{place}: no such {kind} as {unknown[0]} (there are {', '.join(known) or 'none'})")
    return task


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def prompts_entry(value: Any) -> Place | None:
    if isinstance(value, dict) and len(value) == 1:
        (pair,) = value.items()
        return pair if is_number(pair[1]) or isinstance(pair[1], str | bool) else None
    return value if isinstance(value, str) else None


def objectives_entry(value: Any) -> dict[str, float] | None:
    value = {value: 1.0} if isinstance(value, str) else value
    valid = isinstance(value, dict) and all(is_number(weight) and weight > 0 for weight in value.values())
    return {name: float(weight) for name, weight in value.items()} if valid else None


def judges_entry(value: Any) -> tuple[str, ...] | None:
    valid = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if valid else None


def count_entry(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def positive_entry(value: Any) -> float | None:
    return float(value) if is_number(value) and value > 0 else None


def share_entry(value: Any) -> float | None:
    return float(value) if is_number(value) and 0 < value <= 1 else None


# What each entry must be, and its value, or None where it is something else.
READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "prompts": ("the path of a file, or {FIELD: VALUE}", prompts_entry),
    "objectives": ("a name, or {NAME: POSITIVE WEIGHT}", objectives_entry),
    "judges": ("a list of names", judges_entry),
    "responses": ("a whole number of at least 1", count_entry),
    "kl_max": ("a positive number", positive_entry),
    "weight": ("a positive number", positive_entry),
    "share": ("a number above 0 and at most 1", share_entry),
}


# --- their prompts


def load_test_prompts_of(tasks: Sequence[Task], spec: str, seed: int) -> tuple[list[Prompt], ReadingSummary]:
    """Prompts for an evaluation, each with its task, which the field that tells tasks says; of tasks with files of
    their own a field `task`.

    Raises:
        UserError: see `in_task` and `load_prompts`.
    """
    by_field = [task for task in tasks if not isinstance(task.prompts, str)]
    others = [dataclasses.replace(task, prompts=("task", task.name)) for task in tasks if task not in by_field]
    names = dict.fromkeys(task.prompts[0] for task in (*by_field, *others))
    prompts, summary = load_prompts(spec, seed, list(names))
    return [in_task(prompt, [*others, *by_field]) for prompt in prompts], summary


def load_task_prompts(
    tasks: Sequence[Task], spec: str | None, seed: int, fields: Sequence[str] = ()
) -> tuple[list[Prompt], ReadingSummary]:
    """The prompts of all tasks, each of which says its task.

    Args:
        spec: `--data`, if given.
        fields: of their rows that are asked for.

    Raises:
        UserError: a prompt of no task, or of two; a task without prompts, or without `spec`; see `load_prompts`.
    """
    by_field = [task for task in tasks if not isinstance(task.prompts, str)]
    if by_field and not spec:
        raise UserError(f"--data: needed: {by_field[0].place} takes prompts from there")
    if spec and not by_field:
        print_main(f"note: --data: every task of {FLAG} has prompts of its own; it is not read")
    prompts, summary = [], ReadingSummary()
    if by_field:
        found, summary = load_prompts(spec, seed, (by_field[0].prompts[0], *fields))
        prompts += [in_task(prompt, by_field) for prompt in found]
    for task in tasks:
        if isinstance(task.prompts, str):
            try:
                found, own = load_prompts(task.prompts, seed, fields)
            except UserError as error:
                raise UserError(f"{task.place}: {error}") from None
            summary.sources += own.sources
            prompts += [dataclasses.replace(prompt, task=task.name) for prompt in found]
    check_disjoint(prompts)
    check_all_have_prompts(tasks, prompts)
    return prompts, summary


def in_task(prompt: Prompt, tasks: Sequence[Task]) -> Prompt:
    """A prompt with its task, which a field of its row tells. Raises UserError where none does."""
    has = {name: written(value) for name, value in prompt.fields.items()}
    task = next((task for task in tasks if has.get(task.prompts[0]) == written(task.prompts[1])), None)
    asked = dict.fromkeys(each.prompts[0] for each in tasks)
    if task is None:
        found = " and ".join(f"{name!r} is {json.dumps(prompt.fields.get(name))}" for name in asked)
        known = ", ".join(json.dumps(each.prompts[1]) for each in tasks)
        raise UserError(f"{prompt.source}: the prompt is of no task of {FLAG}: its field {found} (tasks have {known})")
    others = {name: value for name, value in prompt.fields.items() if name not in asked}
    return dataclasses.replace(prompt, task=task.name, fields=others)


def written(value: Any) -> str:
    """A value of a field as text, the same for what tables and JSON write."""
    return str(value).lower()


def check_disjoint(prompts: Sequence[Prompt]) -> None:
    """Raises: UserError: the same prompt is there twice."""
    seen: dict[Any, Prompt] = {}
    for prompt in prompts:
        other = seen.setdefault(conversation_key(prompt.messages), prompt)
        if other is not prompt:
            both = f"{other.task} ({other.source}) and {prompt.task} ({prompt.source})"
            raise UserError(f"{FLAG}: {both} have a prompt in common")


def check_all_have_prompts(tasks: Sequence[Task], prompts: Sequence[Prompt]) -> None:
    """Raises: UserError: a task has none of these."""
    counts = Counter(prompt.task for prompt in prompts)
    for task in tasks:
        if not counts[task.name]:
            raise UserError(f"{task.place}: there are no prompts for it")
