"""Step 3 on preference pairs: align an SFT policy to several objectives, without sampling and without reward models.

    python step3_dpo/main.py --help                              one rank
    deepspeed --num_accelerators 2 step3_dpo/main.py --help      several ranks

Every objective has pairs of its own, or labels of its own on the same pairs, and a DPO loss. These are combined as in
step3_gapo: by fixed weights, or by coefficients that are read from the Gram matrix of their gradients. MODPO has the
pairs of one objective, and margins for the others.
"""

import argparse
import gc
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_dpo.arguments import algorithm_of, beta_of, betas_of, check_numbers, margins_of, note_margins, parse_args
from step3_dpo.dry_run import print_pair_dry_run
from step3_dpo.evaluation import evaluate, evaluation_lines, validation_figures
from step3_dpo.frozen import Frozen, Margin, MarginModel, Values, with_values
from step3_dpo.methods import compares_gradients, method_of
from step3_dpo.objectives import PairObjective, objectives_of, read_pairs
from step3_dpo.pairs import MeasuredPair, conflicts
from step3_dpo.policy import PairPolicy
from step3_dpo.update import PairLosses, PairUpdate
from utils.checkpoints.same_run import Facts
from utils.cli.arguments import check_deepspeed_arguments
from utils.cli.lora_arguments import check_lora_options
from utils.cli.plugins import fingerprint_of
from utils.combining.algorithm import Algorithm, LossLevel
from utils.combining.weighing import write_algorithm_state
from utils.data.encoding import Encoded
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_causal_lm, check_dialogues, check_positions
from utils.models.configs import load_tokenizer
from utils.models.fingerprint import model_facts
from utils.models.lora import check_lora
from utils.output.files import check_output
from utils.policy.forward import check_plain_head
from utils.process.distributed import (
    init_distributed,
    is_main,
    print_main,
    seed_everything,
    shutdown_distributed,
)
from utils.process.errors import Problems, run_main
from utils.process.rank_watch import watch_ranks
from utils.supervised.run import Run, export, note_steps, print_summary, train
from utils.supervised.steps import steps_per_epoch
from utils.supervised.task import Task


def main() -> None:
    # Arguments, data, and everything that can be checked before a model is built.
    args = parse_args()
    problems = Problems(collecting=args.dry_run)
    check_lora_options(args, problems)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    objectives = objectives_of(args, problems)
    margins = margins_of(args, objectives, problems)
    check_numbers(args, objectives, margins, problems)
    algorithm = algorithm_of(args, objectives, margins, problems)
    tokenizer, architecture = check_policy(args, problems)
    pairs, held_out = read_pairs(args, objectives, tokenizer, architecture, problems)
    problems.take(check_length, args, pairs, held_out)
    problems.report()
    note_steps(args, pairs.total, "--objective")
    note_margins(args, margins)
    if args.dry_run:
        return print_pair_dry_run(args, objectives, margins, algorithm, (pairs, held_out))
    check_output(args.output_dir, args.fresh)

    # What frozen models say of the pairs: margins first, which need no policy.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    facts, flags = facts_of(args, objectives, margins) if is_main() else {}, ("--objective", "--validation_objective")
    run = Run(args, "dpo", (pairs, held_out), tokenizer, facts=facts, names=flags)
    frozen = Frozen(args, {"train": pairs, "held_out": held_out}, tokenizer)
    found = {margin.name: frozen.margin(margin) for margin in margins}
    total_steps = steps_per_epoch(len(pairs), args) * args.num_train_epochs
    policy = PairPolicy(args, tokenizer, total_steps)
    reference = None if policy.reference else frozen.reference(policy.forward)
    measure = lambda side, examples: measured_pairs(examples, side, reference, found, margins, algorithm)
    pairs, held_out = measure("train", pairs), measure("held_out", held_out)

    # Training, with figures on held-out pairs before, after every epoch and of what is exported.
    losses = losses_of(args, objectives, algorithm)
    update = PairUpdate(policy, algorithm, losses, compares_gradients(args), args)
    task = task_of(args, policy, update, (pairs, held_out), before=frozen.scalars())
    model = policy.engine.module
    outcome = train(policy.engine, model, args, task, run)

    # The aligned policy.
    if is_main():
        write_algorithm_state(algorithm, total_steps, args.output_dir)
    evaluation = {"epoch": outcome.exported_epoch, "pairs": len(held_out)}
    evaluation["conflicts"] = conflicts([pair.record for pair in pairs], losses.names)
    evaluation["objectives"] = evaluate(policy, losses, held_out, args)
    export(model, tokenizer, args, evaluation)
    print_main("\n".join(evaluation_lines(evaluation["objectives"])))
    frozen.finish()
    run.finish()
    print_summary(args, outcome, len(pairs), "loss")
    shutdown_distributed()


def check_policy(
    args: argparse.Namespace, problems: Problems
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedModel | None]:
    """The policy's tokenizer, and the policy without memory for its parameters; None for one with a problem."""
    skeleton = problems.take(check_causal_lm, args.actor_model, "--actor_model")
    problems.take(check_trained_parts, args, skeleton)
    tokenizer = problems.take(load_tokenizer, args.actor_model, "--actor_model")
    usable = problems.passes(check_dialogues, tokenizer, "--actor_model")
    return tokenizer if usable else None, skeleton


def check_trained_parts(args: argparse.Namespace, skeleton: PreTrainedModel) -> None:
    """Raises: UserError: gradients of the head cannot be compared; the policy has no place for the adapters it gets."""
    if args.gradient_scope == "last_layer" and compares_gradients(args):
        check_plain_head(skeleton.config)
    check_lora(skeleton, args)


def check_length(args: argparse.Namespace, pairs: Sequence[Encoded], held_out: Sequence[Encoded]) -> None:
    """Raises: UserError: the policy has fewer positions than the longest pair has tokens."""
    longest = max(example.length for example in (*pairs, *held_out))
    check_positions(args.actor_model, "--actor_model", longest, f"--max_length {args.max_length}, a pair of")


def facts_of(args: argparse.Namespace, objectives: Sequence[PairObjective], margins: Sequence[Margin]) -> Facts:
    """What a run's result depends on beside its flags and pairs."""
    facts: Facts = {"objectives": " ".join(o.name if o.optimized else f"({o.name})" for o in objectives)}
    facts |= model_facts(args.actor_model, "--actor_model")
    if args.lora_dim:  # in no checkpoint, so that no run goes on with another one
        facts["base of the adapters (--actor_model)"] = facts["--actor_model"]
    for margin in margins:
        facts |= model_facts(margin.path, margin.flag) if isinstance(margin, MarginModel) else margin.facts()
    if ":" in args.algorithm:  # a user's own
        facts["--algorithm's file"] = fingerprint_of(args.algorithm, inspect.getsourcefile(method_of(args)))
    return facts


def measured_pairs(
    examples: Sequence[Encoded],
    side: str,
    reference: Values | None,
    margins: dict[str, Values],
    declared: Sequence[Margin],
    algorithm: Algorithm,
) -> list[MeasuredPair]:
    """Pairs with what frozen models say of them; `side` is one of `SIDES`."""
    return with_values(
        examples,
        reference[side] if reference else None,
        {name: values[side] for name, values in margins.items()},
        algorithm.margin_weights if isinstance(algorithm, LossLevel) else {},
        {margin.name: margin.beta for margin in declared if isinstance(margin, MarginModel)},
    )


def losses_of(args: argparse.Namespace, objectives: Sequence[PairObjective], algorithm: Algorithm) -> PairLosses:
    """The losses of a run."""
    betas, scales = betas_of(args), dict(args.loss_scale)
    numbers = lambda values: torch.tensor(values, dtype=torch.float64)
    return PairLosses(
        names=[objective.name for objective in objectives],
        beta=numbers([beta_of(betas, objective.name) for objective in objectives]),
        scale=numbers([scales.get(objective.name, 1.0) for objective in objectives]),
        optimized=[i for i, objective in enumerate(objectives) if objective.optimized],
        logit_scale=algorithm.logit_scale if isinstance(algorithm, LossLevel) else 1.0,
    )


def task_of(
    args: argparse.Namespace,
    policy: PairPolicy,
    update: PairUpdate,
    data: tuple[list[MeasuredPair], list[MeasuredPair]],
    before: dict[str, float],
) -> Task:
    """What is trained on the training pairs and measured on the held-out ones; `before`: figures of earlier work."""
    (pairs, held_out), losses = data, update.losses
    return Task(
        train=pairs,
        validate=lambda: validation_figures(policy, losses, held_out, update.weigher.algorithm, args),
        shown=tuple(f"accuracy/{name}" for name in losses.names),
        step=update.step,
        state=update.weigher,
        before=before,
        groups=[tuple(bool(pair.labels[i]) for i in losses.optimized) for pair in pairs],
        again=MeasuredPair.again,
    )


if __name__ == "__main__":
    run_main(main)
