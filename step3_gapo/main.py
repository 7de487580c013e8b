"""Step 3: align an SFT policy to several reward and cost models at once.

python step3_gapo/main.py --help                              one rank
deepspeed --num_accelerators 2 step3_gapo/main.py --help      several ranks
"""

import argparse
import gc
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_gapo.arguments import algorithm_of, check_adapters_with, check_batch_sizes, objectives_of, parse_args
from step3_gapo.constrained.arguments import load_prompts_of, note_unused, of_tasks, task_facts, tasks_of
from step3_gapo.constrained.mixture import TaskMixture, counts_of, task_rollouts
from step3_gapo.constrained.references import Answers, given_answers, sampled_answers
from step3_gapo.critics import Critic
from step3_gapo.dry_run import print_gapo_dry_run
from step3_gapo.experience import Experience
from step3_gapo.needs import Needs, compares_gradients, method_of, needs_of, policy_loss_of, step_sizes
from step3_gapo.rlhf_engine import RLHFEngine
from step3_gapo.rollout import Rollout, make_rollout
from step3_gapo.tracking import Tracker, mean_scalars, rollout_scalars
from step3_gapo.update import ActorUpdate, Scalars, StepBatches, optimizer_step
from utils.checkpoints.checkpoints import Checkpoints
from utils.checkpoints.skipped_steps import SkippedSteps
from utils.cli.arguments import check_deepspeed_arguments, note_warmup
from utils.cli.plugins import fingerprint_of
from utils.combining.algorithm import Algorithm
from utils.combining.weighing import write_algorithm_state
from utils.data.batching import share_of
from utils.data.encoding import Encoded, data_fingerprint, fit_lengths
from utils.data.records import Prompt
from utils.data.summaries import ReadingSummary
from utils.engines.passes import Passes
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_causal_lm, check_dialogues, check_positions
from utils.models.configs import embedding_rows, load_tokenizer, sampling_config
from utils.models.export import describe_model
from utils.models.fingerprint import model_facts
from utils.models.lora import check_lora
from utils.output.files import check_output
from utils.policy.forward import check_plain_head
from utils.policy.sampled import rows_of_groups
from utils.process.distributed import (
    init_distributed,
    is_main,
    print_main,
    rank,
    seed_everything,
    shutdown_distributed,
    world_size,
)
from utils.process.errors import AT_ONCE, Problems, UserError, run_main
from utils.process.rank_watch import beat, watch_ranks
from utils.scoring.judges import judges_of
from utils.scoring.objectives import Objective
from utils.scoring.reward_functions import RewardFunction
from utils.scoring.tasks import Task, check_all_have_prompts
from utils.scoring.verdicts import Judge

NOTICEABLE = 0.01  # share of the prompts
SKIPPING_ADVICE = "lower --actor_learning_rate or --critic_learning_rate, or try another --algorithm"


@dataclass(frozen=True)
class Input:
    """What a run is made of, before any model is built.

    Attributes:
        tasks: of a loss by task; else none.
        rollouts: the prompts of each, over all ranks.
        references: answers of the data that the tasks' loss reads, by the ids of their prompts.
        minibatches: optimizer steps of one pass over a rollout.
    """

    objectives: list[Objective]
    judges: list[Judge]
    tasks: list[Task]
    algorithm: Algorithm
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Encoded]
    rollouts: list[list[Encoded]]
    references: Answers
    minibatches: int


def main() -> None:
    # Arguments, and everything that can be checked before a model is built.
    args = parse_args()
    given = read_input(args)
    total_steps, algorithm = len(given.rollouts), given.algorithm
    updates = total_steps * args.ppo_epochs * given.minibatches
    note_rollouts(args, given, updates)
    needs = needs_of(args, algorithm)
    if args.dry_run:
        sizes = total_steps, given.minibatches, rollout_size(args)
        return print_gapo_dry_run(
            args, given.objectives, given.judges, given.tasks, needs, given.tokenizer, given.prompts, *sizes
        )
    check_output(args.output_dir, args.fresh)

    # Engines; reference answers, where they are read; the checkpoint to go on from, if there is one.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    checkpoints = Checkpoints(args, "gapo", facts_of(args, given) if is_main() else {})
    engine = engine_of(args, given, needs, updates)
    add_reference_answers(args, given, engine, goes_on=checkpoints.newest is not None)
    actor_update = ActorUpdate(engine.actor, algorithm, needs, args)
    skipped = SkippedSteps(args.max_skipped_steps, SKIPPING_ADVICE)
    done = restore(checkpoints, engine, actor_update, skipped)
    tracker = Tracker(args, given.objectives, total_steps, checkpoints) if is_main() else None

    # The loop: generate, score, update. Batches and random numbers of a step follow from its number alone.
    for step, batch in enumerate(given.rollouts[done:], start=done + 1):
        beat("rollout", step)
        seed_everything(args.seed + 1000 * step + rank())
        passes = Passes()
        rollout = make_rollout(engine, batch[rank() :: world_size()], algorithm, args)
        scalars = rollout_scalars(rollout)
        scalars |= update_models(step, rollout, actor_update, engine.critics, skipped, checkpoints, args)
        scalars |= passes.scalars()
        if tracker:
            tracker.log(step, scalars, rollout)
            write_algorithm_state(algorithm, step, args.output_dir)
        if checkpoints.due(step, total_steps, skipped.in_a_row > 0):
            save(checkpoints, step, engine, actor_update, skipped, tracker)

    # The aligned policy.
    beat("exporting the policy")
    engine.save_policy(args.output_dir)
    if tracker:
        tracker.close()
    checkpoints.finish()
    print_main(f"policy saved in {args.output_dir}")
    shutdown_distributed()


def read_input(args: argparse.Namespace) -> Input:
    """Everything that the flags name, checked. Raises UserError for what is wrong with it; in a dry run, all of it."""
    problems = Problems(collecting=args.dry_run)
    check_adapters_with(args, problems)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    objectives = objectives_of(args, problems)
    judges = judges_of(args, [objective.name for objective in objectives], problems)
    tasks = tasks_of(args, objectives, problems)
    if tasks:
        note_unused(args, objectives, judges, tasks)
        objectives, judges = of_tasks(objectives, judges, tasks)
    algorithm = algorithm_of(args, objectives, problems, tasks or ())
    minibatches = problems.take(check_batch_sizes, args, tasks)
    tokenizer, architecture = check_policy(args, problems)
    prompts = read_prompts(args, tokenizer, architecture, problems, tasks)
    try_functions(objectives, judges, prompts, tasks, problems)
    total = problems.take(count_rollouts, args, prompts and len(prompts))
    rollouts = problems.take(rollouts_of, args, prompts, tasks, total)
    references = {}
    if args.reference_answers:
        references = problems.take(partial(given_answers, rows=embedding_rows(architecture)), prompts, tokenizer, args)
    problems.report()
    return Input(objectives, judges, tasks, algorithm, tokenizer, prompts, rollouts, references, minibatches)


def check_policy(
    args: argparse.Namespace, problems: Problems
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedModel | None]:
    """The policy's tokenizer, and the policy without memory for its parameters; None for one with a problem.

    Problems: the policy is no language model with room for prompt and response; see `check_trained_parts`.
    """
    skeleton = problems.take(check_causal_lm, args.actor_model, "--actor_model")
    problems.take(check_trained_parts, args, skeleton)
    length = args.max_prompt_length + args.max_new_tokens
    what = "--max_prompt_length + --max_new_tokens"
    problems.take(check_positions, args.actor_model, "--actor_model", length, what)
    tokenizer = problems.take(load_tokenizer, args.actor_model, "--actor_model")
    usable = problems.passes(check_dialogues, tokenizer, "--actor_model")
    return tokenizer if usable else None, skeleton


def check_trained_parts(args: argparse.Namespace, skeleton: PreTrainedModel) -> None:
    """Raises: UserError: gradients of the head cannot be compared; the policy has no place for the adapters it gets."""
    if args.gradient_scope == "last_layer" and compares_gradients(args):
        check_plain_head(skeleton.config)
    check_lora(skeleton, args)


def read_prompts(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase | None,
    architecture: PreTrainedModel | None = None,
    problems: Problems = AT_ONCE,
    tasks: Sequence[Task] | None = (),
) -> list[Encoded] | None:
    """The prompts that fit `--max_prompt_length` and the model, with what was read and dropped on the screen.

    Args:
        tokenizer, architecture: None in a dry run that has found none; the data is read all the same.
        tasks: None in a dry run that has found a problem with them.
    """
    fit = partial(fit_prompts, rows=embedding_rows(architecture))
    encoded = problems.take(fit, args, tokenizer, problems.take(load_prompts_of, args, tasks))
    if encoded and tasks:
        problems.take(check_all_have_prompts, tasks, [prompt.record for prompt in encoded])
    return encoded


def fit_prompts(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase,
    read: tuple[list[Prompt], ReadingSummary],
    rows: int | None,
) -> list[Encoded]:
    """Raises: UserError: see `fit_lengths`."""
    prompts, summary = read
    limits = {"max_prompt_length": args.max_prompt_length, "unfit": args.unfit, "embedding_rows": rows}
    encoded = fit_lengths(tokenizer, prompts, summary, args.overlong, **limits)
    print_main("\n".join(summary.lines()))
    return encoded


def try_functions(
    objectives: list[Objective],
    judges: list[Judge],
    prompts: list[Encoded] | None,
    tasks: list[Task] | None,
    problems: Problems,
) -> None:
    """Call every objective and judge that is a function once: one that fails does so before models are built."""
    if prompts is None:
        return
    for objective in objectives:
        if objective.is_function:
            problems.take(try_function, problems.take(objective.load_function), prompts)
    for judge in judges:
        names = [task.name for task in tasks or () if judge.name in task.judges]
        if asked := [prompt.record for prompt in prompts if not tasks or prompt.record.task in names]:
            problems.take(judge.try_out, asked)


def try_function(function: RewardFunction, prompts: list[Encoded]) -> None:
    """Raises: UserError: the function fails for the first prompt."""
    function.try_out(prompts[0].record)


def update_models(
    step: int,
    rollout: Rollout,
    actor_update: ActorUpdate,
    critics: list[Critic],
    skipped: SkippedSteps,
    checkpoints: Checkpoints,
    args: argparse.Namespace,
) -> Scalars:
    """All optimizer steps on a rollout; what to log of them."""
    start, algorithm = time.monotonic(), actor_update.algorithm
    measured: list[Scalars] = []
    for update, not_finite in optimizer_steps(rollout, actor_update, critics, args):
        skipped.observe(step, not_finite, checkpoints)
        measured.append(update)
    scalars = mean_scalars(measured) | algorithm.scalars()
    return scalars | {"time/update": time.monotonic() - start, "skipped_steps": skipped.total}


def optimizer_steps(
    rollout: Rollout, actor_update: ActorUpdate, critics: list[Critic], args: argparse.Namespace
) -> Iterator[tuple[Scalars, str | None]]:
    """One optimizer step after another: its metrics; what was not finite, for which it was skipped, if anything."""
    for number, micro_batches in enumerate(optimizer_batches(rollout.trained, args)):
        beat(f"update {number + 1}")
        taken = {}, rollout.not_finite
        if not rollout.not_finite:
            taken = optimizer_step(actor_update, critics, micro_batches, number == 0, args)
        rollout.trained.graphs = None  # some are left of a step that was not taken
        yield taken


def facts_of(args: argparse.Namespace, given: Input) -> dict[str, str]:
    """What a run's result depends on beside its flags: objectives' names, fingerprints of what it reads."""
    facts = {"objectives": " ".join(o.name if o.optimized else f"({o.name})" for o in given.objectives)}
    facts |= model_facts(args.actor_model, "--actor_model")
    if args.lora_dim:  # in no checkpoint, so that no run goes on with another one
        facts["base of the adapters (--actor_model)"] = facts["--actor_model"]
    for each in (*given.objectives, *given.judges):
        facts |= each.facts()
    facts |= task_facts(given.tasks)
    if ":" in args.algorithm:  # a user's own
        facts["--algorithm's file"] = fingerprint_of(args.algorithm, inspect.getsourcefile(method_of(args)))
    return facts | {"--data": data_fingerprint(given.prompts)}


def engine_of(args: argparse.Namespace, given: Input, needs: Needs, updates: int) -> RLHFEngine:
    """All models, and the tasks that they work on."""
    optimized = [objective.name for objective in given.objectives if objective.optimized]
    mixture = TaskMixture(given.tasks, policy_loss_of(args), optimized) if given.tasks else None
    generation = sampling_config(given.tokenizer, args.temperature, args.max_new_tokens)
    return RLHFEngine(args, given.objectives, needs, given.tokenizer, generation, updates, given.judges, mixture)


def add_reference_answers(args: argparse.Namespace, given: Input, engine: RLHFEngine, goes_on: bool) -> None:
    """Give the tasks' loss, where it reads them, reference answers to all prompts of the run.

    Those that the data has not are sampled while the policy is what it starts from, before a checkpoint is restored.
    """
    mixture = engine.mixture
    if mixture and mixture.loss.reads_references:
        prompts = [prompt for batch in given.rollouts for prompt in batch]
        sampled = partial(sampled_answers, prompts, engine.actor, engine.tokenizer, args, goes_on)
        mixture.references = given.references or sampled()


def restore(checkpoints: Checkpoints, engine: RLHFEngine, actor_update: ActorUpdate, skipped: SkippedSteps) -> int:
    """Go on from the checkpoint that was found, if any; the rollouts that are done."""
    state = checkpoints.restore(engine.trained())
    if state is None:
        return 0
    actor_update.weigher.load_state_dict(state["algorithm"])
    skipped.load_state_dict(state["skipped"])
    return state["step"]


def save(
    checkpoints: Checkpoints,
    step: int,
    engine: RLHFEngine,
    actor_update: ActorUpdate,
    skipped: SkippedSteps,
    tracker: Tracker | None,
) -> None:
    """Make the checkpoint of a rollout that is done. The next one is made again from its number."""

    def write_more(folder: Path) -> None:
        tracker.logger.copy_to(folder)
        describe_model(engine.actor.engine.module, engine.tokenizer, folder / "model")

    state = {"algorithm": actor_update.weigher.state_dict(), "skipped": skipped.state_dict()}
    checkpoints.save(step, engine.trained(), state, write_more)


def rollout_size(args: argparse.Namespace) -> int:
    """Prompts of a rollout, over all ranks."""
    return args.per_device_prompt_batch_size * args.generation_batches * world_size()


def count_rollouts(args: argparse.Namespace, prompts: int) -> int:
    """Rollouts of the whole run; an epoch drops the prompts that do not fill one."""
    per_epoch = prompts // rollout_size(args)
    if not per_epoch:
        raise UserError(f"{args.tasks or '--data'}: {prompts} prompts do not fill one rollout of {rollout_size(args)}")
    total = per_epoch * args.num_train_epochs
    return min(total, args.max_steps or total)


def note_rollouts(args: argparse.Namespace, given: Input, updates: int) -> None:
    """Say where a run has fewer rollouts than asked for, leaves out noticeably many prompts, or warms up only; and how
    often the prompts of tasks come round.

    Args:
        updates: optimizer steps of the whole run.
    """
    note_warmup(args, updates)
    prompts, size = len(given.prompts), rollout_size(args)
    per_epoch, left_out = divmod(prompts, size)
    total = per_epoch * args.num_train_epochs
    if args.max_steps and args.max_steps > total:
        epochs = "1 epoch" if args.num_train_epochs == 1 else f"{args.num_train_epochs} epochs"
        print_main(
            f"note: --max_steps {args.max_steps}: the prompts of {epochs} fill {total} rollouts;"
            " raise --num_train_epochs for more"
        )
    for name, count in (counts_of(given.tasks, given.prompts, size) if given.tasks else {}).items():
        own = sum(prompt.record.task == name for prompt in given.prompts)
        passes = count * len(given.rollouts) / own
        print_main(f"task {name}: {own} prompts, {count} of the {size} of a rollout, {passes:.2g} passes over them")
    if not given.tasks and left_out > NOTICEABLE * prompts and (args.max_steps or total) >= per_epoch:
        print_main(
            f"note: --data: every epoch leaves out {left_out} of {prompts} prompts, drawn anew, which do not fill a"
            f" rollout of {size}"
        )


def rollouts_of(args: argparse.Namespace, prompts: list[Encoded], tasks: list[Task], total: int) -> list[list[Encoded]]:
    """The prompts of one rollout after another, over all ranks, in random order.

    Raises:
        UserError: see `counts_of`.
    """
    if tasks:
        return list(task_rollouts(prompts, counts_of(tasks, prompts, rollout_size(args)), args.seed, total))
    return list(islice(prompt_batches(prompts, args), total))


def prompt_batches(prompts: list[Encoded], args: argparse.Namespace) -> Iterator[list[Encoded]]:
    """The prompts of one rollout after another, reshuffled every epoch."""
    size = rollout_size(args)
    for epoch in range(args.num_train_epochs):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(args.seed + epoch)).tolist()
        for start in range(0, len(prompts) - size + 1, size):
            yield [prompts[i] for i in order[start : start + size]]


def optimizer_batches(experience: Experience, args: argparse.Namespace) -> Iterator[StepBatches]:
    """The micro-batches of one optimizer step after another, `--ppo_epochs` times through the experience."""
    together = experience.neighbours
    size = len(experience.mask) if policy_loss_of(args).by_task else step_sizes(args)[1]
    # Of the step's responses, the same number on every rank.
    compared = together * share_of(args.gram_fraction or 1.0, size // together)
    for _ in range(args.ppo_epochs):
        order = torch.randperm(len(experience.mask) // together).to(experience.mask.device)
        rows = rows_of_groups(order, together)
        if experience.graphs:  # of the whole rollout, which is one micro-batch
            yield StepBatches([experience])
            return
        for part in rows.split(size):
            yield StepBatches(*(experience.micro_batches(p, args) for p in (part[:compared], part[compared:])))
            experience.hidden = None  # of the policy that sampled; it has moved


if __name__ == "__main__":
    run_main(main)
