"""The flags of losses by task, and what of them can be checked before a model is built."""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence

from step3_gapo.constrained.losses import RESPONSES, ConstrainedLoss
from step3_gapo.needs import POLICY_LOSSES, method_of, policy_loss_of, step_sizes
from step3_gapo.policy_losses import ClippedSurrogate
from utils.checkpoints.same_run import ONE_STEP_A_ROLLOUT
from utils.cli.types import by_name
from utils.combining.algorithm import GradientLevel, LossLevel, options_of, owners, preference_weights
from utils.data import ReadingSummary, load_prompts
from utils.data.records import Prompt
from utils.process.distributed import print_main
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.scoring.objectives import Objective
from utils.scoring.tasks import FLAG, HELP, READERS, Task, load_task_prompts, read_tasks
from utils.scoring.verdicts import Judge

ALL = "all"  # the task of all prompts
BY_TASK = [name for name, loss in POLICY_LOSSES.items() if loss.by_task]
# Flags that say how advantages are made, or used again, and what they are unless given.
OF_ADVANTAGES = {
    "advantage": None, "kl_in": None, "whiten_advantages": False, "group_without_std": False, "critic": "separate",
    "keep_graphs": False, "ppo_epochs": 1,
}  # fmt: skip


def add_task_arguments(group: argparse._ActionsContainer) -> None:
    """`--policy_loss` and `--tasks`."""
    losses = "; ".join(f"{name}: {loss.summary}" for name, loss in POLICY_LOSSES.items())
    group.add_argument(
        "--policy_loss",
        choices=list(POLICY_LOSSES),
        default=None,
        help=f"{losses}; {ClippedSurrogate.name} unless given. {', '.join(BY_TASK)} have a loss for every task, without"
        " critics and without a KL penalty: cgpo and what compares gradients combine them. They take one optimizer step"
        " on a rollout, in as many micro-batches as it needs",
    )
    group.add_argument(
        FLAG,
        default=None,
        metavar="FILE",
        help=f"{', '.join(BY_TASK)}: {HELP}; unless given, all prompts are one task, of all objectives and judges",
    )


def settle_policy_loss(args: argparse.Namespace) -> None:
    """Fill in the options of the policy loss."""
    vars(args).update(options_of(policy_loss_of(args), args))


def check_policy_loss(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: options that the policy loss does not read, and what does not go with it."""
    loss, method = policy_loss_of(args), method_of(args)
    for option, names in owners(list(POLICY_LOSSES.values())):
        if option not in loss.options and getattr(args, option.name) is not None:
            problems.add(f"--{option.name}: --policy_loss {loss.name} has none (it serves {', '.join(names)})")
    if issubclass(method, LossLevel) and method.reads_margins:
        problems.add(f"--algorithm {args.algorithm}: reads margins, of which step 3 has none")
    if method.of_tasks and not loss.by_task:
        problems.add(f"--algorithm {args.algorithm}: weighs losses of tasks: give --policy_loss {' or '.join(BY_TASK)}")
    if not loss.by_task:
        if args.tasks:
            problems.add(f"{FLAG}: --policy_loss {loss.name} knows none (it serves {', '.join(BY_TASK)})")
        return
    words = f"--policy_loss {loss.name}"
    if not issubclass(method, GradientLevel | LossLevel):
        problems.add(f"{words} has a loss a task; --algorithm {args.algorithm} combines what comes before losses")
    for flag, default in OF_ADVANTAGES.items():
        if getattr(args, flag) != default:
            problems.add(f"--{flag}: {words} goes by no advantage, once through a rollout")
    if args.enable_hybrid_engine:
        problems.add(f"--enable_hybrid_engine: with {words} ranks may generate batches of other sizes")
    if args.per_device_train_batch_size % loss.neighbours:
        problems.add(f"--per_device_train_batch_size {args.per_device_train_batch_size}: {words} trains pairs of rows")


def tasks_of(
    args: argparse.Namespace, objectives: Sequence[Objective], problems: Problems = AT_ONCE
) -> list[Task] | None:
    """The tasks of a run; none where the policy loss knows none. Settles the step (`settle_step`).

    Problems: see `check_policy_loss`, `find_tasks` and `check_task`.
    """
    check_policy_loss(args, problems)
    loss = policy_loss_of(args)
    if not loss.by_task or not objectives:
        return []
    tasks = problems.take(find_tasks, args, objectives)
    for task in tasks or ():
        check_task(args, loss, task, problems)
    if tasks:
        settle_step(args, tasks)
    return tasks


def check_task(args: argparse.Namespace, loss: ConstrainedLoss, task: Task, problems: Problems) -> None:
    """Problems: too few responses; an objective that is not optimized."""
    place = task.place if args.tasks else "--responses_per_prompt"
    if task.responses < loss.least_responses:
        problems.add(f"{place}: --policy_loss {loss.name} compares the responses to a prompt: 2 or more are needed")
    for name in set(task.objectives) & set(args.monitor):
        problems.add(f"--monitor {name}: {task.place} is trained on it")


def settle_step(args: argparse.Namespace, tasks: Sequence[Task]) -> None:
    """Leave in the flags the most responses to a prompt, and the micro-batches of the one step on a rollout."""
    args.responses_per_prompt = max(task.responses for task in tasks)
    rows, _ = step_sizes(args)
    needed = math.ceil(rows / args.per_device_train_batch_size)
    if args.gradient_accumulation_steps not in (1, needed):
        print_main(
            f"note: --gradient_accumulation_steps {args.gradient_accumulation_steps}: --policy_loss {args.policy_loss}"
            f" takes one step on the rows of a rollout, {rows}, in {needed} micro-batches"
        )
    args.gradient_accumulation_steps = needed


def note_unused(
    args: argparse.Namespace, objectives: Sequence[Objective], judges: Sequence[Judge], tasks: Sequence[Task]
) -> None:
    """Say what nothing makes use of: objectives, judges, entries of tasks, of which one file serves several methods."""
    trained, asked = ({name for task in tasks for name in getattr(task, part)} for part in ("objectives", "judges"))
    for objective in objectives:
        if objective.name not in trained and objective.name not in args.monitor:
            print_main(f"note: {objective.name}: no task is trained on it; it is scored and logged")
    for judge in judges:
        if judge.name not in asked:
            print_main(f"note: --judge {judge.name}: no task asks it")
    if len({task.weight for task in tasks}) > 1 and not method_of(args).reads_preference:
        print_main(f"note: {FLAG}: --algorithm {args.algorithm} reads no weights")
    if any(task.kl_max < math.inf for task in tasks) and not policy_loss_of(args).reads_references:
        print_main(f"note: {FLAG}: --policy_loss {args.policy_loss} reads no kl_max")


def find_tasks(args: argparse.Namespace, objectives: Sequence[Objective]) -> list[Task]:
    """Those of `--tasks`, or that of all prompts.

    Raises:
        UserError: see `read_tasks` and `preference_weights`; gradients are to be combined, and there is one task.
    """
    responses, kl_max = args.responses_per_prompt or RESPONSES, args.kl_max or math.inf
    names = [name for name, _ in (*args.judge, *args.judge_model)]  # those with problems, too
    if args.tasks:
        return read_tasks(args.tasks, [objective.name for objective in objectives], names, responses, kl_max)
    optimized = [objective.name for objective in objectives if objective.optimized]
    method = method_of(args)
    if issubclass(method, GradientLevel) and len(optimized) > 1:
        raise UserError(
            f"--algorithm {args.algorithm}: has nothing to combine: without {FLAG} all prompts are one task"
        )
    weights = preference_weights(method, optimized, by_name("--preference", args.preference)).tolist()
    return [Task(ALL, args.data, dict(zip(optimized, weights, strict=True)), names, responses, kl_max)]


def task_weights(args: argparse.Namespace, tasks: Sequence[Task]) -> dict[str, float]:
    """What the method is told of the tasks' weights: `--preference`, or those of the tasks, of sum 1; nothing where it
    reads none."""
    if not method_of(args).reads_preference:
        return {}
    if args.tasks and args.preference:
        return by_name("--preference", args.preference)
    total = sum(task.weight for task in tasks)
    return {task.name: task.weight / total for task in tasks}


def of_tasks(
    objectives: Sequence[Objective], judges: Sequence[Judge], tasks: Sequence[Task]
) -> tuple[list[Objective], list[Judge]]:
    """Objectives, of which those that no task is trained on are only scored, and the judges that some task asks."""
    trained, asked = ({name for task in tasks for name in getattr(task, part)} for part in ("objectives", "judges"))
    found = [dataclasses.replace(each, optimized=each.optimized and each.name in trained) for each in objectives]
    return found, [judge for judge in judges if judge.name in asked]


def load_prompts_of(args: argparse.Namespace, tasks: Sequence[Task]) -> tuple[list[Prompt], ReadingSummary]:
    """The prompts of a run, each with its task, if there are tasks.

    Raises:
        UserError: see `load_task_prompts` and `load_prompts`; there is no `--data`.
    """
    fields = [args.reference_answers] if args.reference_answers else []
    if args.tasks and tasks:
        return load_task_prompts(tasks, args.data, args.seed, fields)
    if not args.data:
        raise UserError("--data: needed")
    prompts, summary = load_prompts(args.data, args.seed, fields)
    return [dataclasses.replace(prompt, task=ALL if tasks else "") for prompt in prompts], summary


def check_step(args: argparse.Namespace, loss: ConstrainedLoss, tasks: Sequence[Task], ranks: int) -> None:
    """Raises: UserError: ranks, which then have other numbers of rows, could not make as many micro-batches."""
    if ranks == 1 or len({task.responses for task in tasks}) == 1:
        return
    size, widest = args.per_device_train_batch_size, args.responses_per_prompt + loss.reads_references
    why = "tasks have other numbers of responses, on several ranks"
    if size < widest:
        raise UserError(f"--per_device_train_batch_size {size}: {why}: {widest} or more are needed")
    for flag in ("micro_batch_tokens", "gram_fraction"):
        if getattr(args, flag):
            raise UserError(f"--{flag}: {why}, and have to make as many micro-batches; leave it out")


def task_facts(tasks: Sequence[Task]) -> dict[str, str]:
    """What a run's result depends on of tasks, beside their prompts."""
    if not tasks:
        return {}
    entries = [name for name in READERS if name != "prompts"]
    own = {f"{FLAG} {task.name}: {name}": json.dumps(getattr(task, name)) for task in tasks for name in entries}
    return {ONE_STEP_A_ROLLOUT: " ".join(task.name for task in tasks)} | own
