"""The command line of step 3 and everything about it that can be checked before a model is built."""

import argparse
import dataclasses
import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from step3_gapo.advantages import ESTIMATORS
from step3_gapo.constrained.arguments import add_task_arguments, check_step, settle_policy_loss, task_weights
from step3_gapo.needs import (
    METHODS,
    POLICY_LOSSES,
    critics_start_from_scores,
    estimator_of,
    kl_in,
    learns_values,
    method_named,
    method_of,
    policy_loss_of,
    step_sizes,
)
from utils.cli.arguments import (
    OF_THE_RANKS,
    Parser,
    add_actor_argument,
    add_checkpoint_arguments,
    add_data_arguments,
    add_deepspeed_arguments,
    add_dry_run_arguments,
    add_loading_arguments,
    add_logits_argument,
    add_optimization_arguments,
)
from utils.cli.free_flags import add_free
from utils.cli.lora_arguments import add_lora_arguments, check_lora_options, set_lora_defaults
from utils.cli.types import (
    adam_beta,
    by_name,
    condition,
    fraction,
    named_condition,
    named_number,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_fraction,
    positive_int,
    temperature,
)
from utils.combining.algorithm import (
    Algorithm,
    ScoreLevel,
    add_options,
    build,
    options_of,
    preference_weights,
)
from utils.combining.arguments import (
    add_algorithm_argument,
    add_logging_arguments,
    add_scope_argument,
    add_weight_arguments,
    check_method_options,
    own_method_of,
    settle_method,
)
from utils.models.checking import check_positions
from utils.models.configs import allow, load_config, load_tokenizer
from utils.policy.sampling import COMPACT_AT
from utils.process.distributed import world_size
from utils.process.errors import AT_ONCE, Problems, UserError
from utils.scoring.judges import add_judge_arguments
from utils.scoring.objectives import Condition, Objective, add_score_arguments, declared_objectives
from utils.scoring.score_models import is_ours
from utils.scoring.tasks import Task


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Step 3: align a policy to several objectives with PPO, GAPO and their relatives.",
        facts=(*OF_THE_RANKS, "actor_model_sha256"),
    )
    methods = [*METHODS.values(), *own_method_of(argv, method_named)]
    add_objective_arguments(parser)
    add_algorithm_arguments(parser, methods)
    add_gradient_arguments(parser)
    add_data_arguments(parser, "prompts", required=False)
    add_rollout_arguments(parser)
    add_ppo_arguments(parser)
    add_lora_arguments(parser, "policy, reference and critics")
    add_memory_arguments(parser)
    add_optimization_arguments(parser)
    add_checkpoint_arguments(parser, 10, "rollouts")
    add_loading_arguments(parser)
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    add_options(parser.add_argument_group("options of one method"), methods)
    add_options(parser.add_argument_group("options of one policy loss"), list(POLICY_LOSSES.values()))
    args = parser.parse_args(argv)
    allow(args)
    settle_method(args, method_of(args), METHODS, parser.from_file)
    settle_policy_loss(args)
    set_lora_defaults(args)
    return args


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models and objectives")
    add_actor_argument(group)
    add_score_arguments(group)
    add_judge_arguments(group)
    group.add_argument(
        "--monitor",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of these objectives only score and log, do not optimize",
    )
    group.add_argument(
        "--score_scale",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=S",
        help="multiply an objective's score during training; logs stay in original units",
    )
    group.add_argument(
        "--conditioned",
        type=named_condition,
        nargs="+",
        default=[],
        metavar="NAME=OTHER:T",
        help="in training, an objective's score counts only where that of another one is at least T, in original units;"
        " elsewhere it is 0 (conditioned rewards of GDPO, whose rewards are never negative)",
    )
    group.add_argument(
        "--critic",
        choices=("separate", "shared"),
        default="separate",
        help="a critic an objective, or one trunk with a head an objective",
    )


def add_algorithm_arguments(parser: argparse.ArgumentParser, methods: list[type[Algorithm]]) -> None:
    group = parser.add_argument_group("how the objectives combine")
    add_algorithm_argument(group, METHODS, methods)
    group.add_argument(
        "--advantage",
        choices=list(ESTIMATORS),
        default=None,
        help="how advantages are estimated: gae, with a critic a loss; group, a response's score against those of the"
        " others to its prompt (GRPO), or rloo (leave one out), both without critics; what suits the method by default",
    )
    group.add_argument(
        "--group_without_std",
        action="store_true",
        help="--advantage group: do not divide by the standard deviation of a prompt's scores (Dr. GRPO); better for"
        " methods that rescale gradients themselves (docs/critic_free.md)",
    )
    group.add_argument(
        "--kl_in",
        choices=("reward", "loss"),
        default=None,
        help="the KL penalty: part of every reward, or a term of every loss (estimated by k3); unless given, in the"
        " reward with critics and in the loss without",
    )
    add_task_arguments(group)
    add_weight_arguments(group, methods)


def add_gradient_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which gradients are compared")
    add_scope_argument(group)
    group.add_argument(
        "--gram_per",
        choices=("step", "micro_batch"),
        default="step",
        help="last_layer with accumulation: one set of coefficients an optimizer step (exact), or one a micro-batch"
        " (noisier; spares a forward pass where the policy has moved since the rollout)",
    )
    group.add_argument(
        "--gram_fraction",
        type=positive_fraction,
        default=None,
        metavar="F",
        help="--gradient_scope full: compare the gradients of this share of an optimizer step's responses and take one"
        " backward pass for the others: an approximation, cheaper where there are many; 1 unless given",
    )
    add_logging_arguments(group)


def add_rollout_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rollout")
    group.add_argument("--max_prompt_length", type=positive_int, default=256, help="tokens")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="tokens of a response")
    group.add_argument("--temperature", type=temperature, default=1.0, help="sampling temperature")
    group.add_argument("--per_device_prompt_batch_size", type=positive_int, default=16, help="prompts answered at once")
    group.add_argument(
        "--responses_per_prompt",
        type=positive_int,
        default=None,
        metavar="G",
        help="responses to each prompt, made at once: 1 unless given, with losses by task 4; for --advantage group and"
        " rloo, and for codpo, 2 or more",
    )
    group.add_argument("--generation_batches", type=positive_int, default=1, help="such batches before each update")
    add_free(
        group,
        "--compact_at",
        type=fraction,
        default=COMPACT_AT,
        metavar="SHARE",
        help="responses that have ended leave the batch once they are at least this share of it, and the others are"
        f" decoded faster; the same distribution; 0: they stay until the longest has ended; default {COMPACT_AT:g}."
        " Not with --enable_hybrid_engine, nor models that keep more of a text than keys and values",
    )
    add_free(
        group,
        "--enable_hybrid_engine",
        action="store_true",
        help="generate with DeepSpeed's hybrid engine where it can; says why where it cannot",
    )
    group.add_argument("--clip_range_score", type=positive_float, default=50.0, help="scores are clipped to ± this")
    group.add_argument(
        "--missing_eos_penalty",
        type=non_negative_float,
        default=0.0,
        help="subtracted from every score of a response that did not end",
    )


def add_ppo_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("PPO")
    group.add_argument("--num_train_epochs", type=positive_int, default=1, help="passes over the prompts")
    group.add_argument("--max_steps", type=positive_int, default=None, help="stop after this many rollouts")
    group.add_argument(
        "--per_device_train_batch_size", type=positive_int, default=16, help="sequences in a micro-batch"
    )
    group.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=1, help="micro-batches an optimizer step"
    )
    group.add_argument("--ppo_epochs", type=positive_int, default=1, help="passes over each rollout")
    group.add_argument("--kl_coeff", type=non_negative_float, default=0.05, help="β of the KL penalty, see --kl_in")
    group.add_argument("--clip_range_ratio", type=positive_float, default=0.1, help="ε of the clipped surrogate")
    group.add_argument("--clip_range_value", type=positive_float, default=5.0, help="clip of the value's move")
    group.add_argument("--gamma", type=fraction, default=1.0, help="discount")
    group.add_argument("--gae_lambda", type=fraction, default=0.95, help="λ of generalized advantage estimation")
    group.add_argument(
        "--whiten_advantages",
        action="store_true",
        help="whiten each objective's advantages, itself a rescaling of the objectives",
    )
    group.add_argument("--actor_learning_rate", type=positive_float, default=1e-6, help="peak learning rate, AdamW")
    group.add_argument("--critic_learning_rate", type=positive_float, default=5e-7, help="peak learning rate, AdamW")
    group.add_argument("--adam_betas", type=adam_beta, nargs=2, default=(0.9, 0.95), metavar=("B1", "B2"), help="AdamW")
    group.add_argument("--adam_eps", type=positive_float, default=1e-5, help="AdamW")


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    add_logits_argument(group)
    add_free(
        group,
        "--micro_batch_tokens",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="form micro-batches of at most N tokens with padding, in place of --per_device_train_batch_size sequences"
        " each; the step stays the same; 0: off",
    )
    add_free(
        group,
        "--park_frozen_models",
        action="store_true",
        help="keep reference, reward and cost models in the host's memory but while they score",
    )
    add_free(
        group,
        "--keep_graphs",
        action="store_true",
        help="where a rollout is one micro-batch of one optimizer step: the update goes on from the rollout's passes of"
        " policy and critics, for the memory of all their activations at once",
    )


def check_adapters_with(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: LoRA's options without LoRA, and what does not go with it."""
    if args.lora_dim and args.enable_hybrid_engine:
        problems.add("--enable_hybrid_engine: its kernels know no adapters; leave it out with --lora_dim")
    check_lora_options(args, problems)


def objectives_of(args: argparse.Namespace, problems: Problems = AT_ONCE) -> list[Objective]:
    """The named objectives, rewards first, in the order given.

    Problems: see `declared_objectives`, `Objective.check` and `check_tokens`; an unknown name in --monitor or
    --score_scale, a scale not positive.
    """
    objectives = declared_objectives(args, problems)
    sound = [objective for objective in objectives if problems.passes(objective.check)]
    policy_tokenizer = problems.take(load_tokenizer, args.actor_model, "--actor_model")
    for objective in sound:
        problems.take(check_tokens, objective, policy_tokenizer, args, problems)
    names = [objective.name for objective in objectives]
    for flag, given in (("--monitor", args.monitor), ("--score_scale", [name for name, _ in args.score_scale])):
        for name in given:
            if objectives and name not in names:
                problems.add(f"{flag} {name}: no such objective (there are {', '.join(names)})")
    scales = problems.take(by_name, "--score_scale", args.score_scale) or {}
    for name, scale in scales.items():
        if not 0 < scale < math.inf:
            problems.add(f"--score_scale {name}={scale:g}: must be positive")
    conditions = problems.take(conditions_of, args, names if objectives else []) or {}
    return [
        dataclasses.replace(
            o, scale=scales.get(o.name, 1.0), condition=conditions.get(o.name), optimized=o.name not in args.monitor
        )
        for o in objectives
    ]


def conditions_of(args: argparse.Namespace, names: list[str]) -> dict[str, Condition]:
    """`--conditioned`, by objective.

    Raises:
        UserError: an unknown name (where `names` are known), one given twice, a condition on itself.
    """
    conditions = {name: condition(text) for name, text in by_name("--conditioned", args.conditioned).items()}
    for name, (other, least) in conditions.items():
        words = f"--conditioned {name}={other}:{least:g}"
        for unknown in (n for n in (name, other) if names and n not in names):
            raise UserError(f"{words}: no such objective as {unknown} (there are {', '.join(names)})")
        if name == other:
            raise UserError(f"{words}: an objective is no condition of itself")
        if name in args.monitor:
            raise UserError(f"{words}: {name} is not optimized (--monitor)")
    return {name: Condition(*parts) for name, parts in conditions.items()}


def check_tokens(
    objective: Objective, policy_tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, problems: Problems
) -> None:
    """Problems: a score model that reads the tokens of the policy as they are, or starts a critic, which does (others
    truncate), without room for the longest sequence, or for all ids."""
    if objective.is_function:
        return
    critic = critics_start_from_scores(args) and objective.name not in args.monitor
    reads = critic or is_ours(load_config(objective.path, objective.flag))
    if reads and objective.shares_tokens_of(policy_tokenizer):
        length = args.max_prompt_length + args.max_new_tokens
        what = "--max_prompt_length + --max_new_tokens"
        problems.take(check_positions, objective.path, objective.flag, length, what)
        problems.take(check_vocabulary, objective, args.actor_model)


def check_vocabulary(objective: Objective, actor_model: str) -> None:
    """Raise UserError if the policy can sample ids that a score model, which reads them as they are, does not know."""
    rows = load_config(objective.path, objective.flag).get_text_config().vocab_size
    ids = load_config(actor_model, "--actor_model").get_text_config().vocab_size
    if ids > rows:
        raise UserError(
            f"{objective.flag} {objective.path}: its vocabulary of {rows} is smaller than that of --actor_model, {ids},"
            " and their tokenizers are the same: nothing would be re-tokenized"
        )


def algorithm_of(
    args: argparse.Namespace, objectives: list[Objective], problems: Problems = AT_ONCE, tasks: Sequence[Task] = ()
) -> Algorithm | None:
    """The method for the optimized objectives, or for tasks; None where flags do not fit together, which are the
    problems."""
    optimized = [objective for objective in objectives if objective.optimized]
    if objectives and not optimized:
        problems.add("--monitor: no objective is left to optimize")
    check_algorithm_options(args, problems)
    check_estimator(args, problems)
    check_kept_graphs(args, problems)
    if not optimized or (policy_loss_of(args).by_task and not tasks):
        return None
    method, names = method_of(args), [objective.name for objective in optimized]
    kinds = [objective.kind for objective in optimized]
    if tasks:
        names, kinds = [task.name for task in tasks], ["task"] * len(tasks)
        preference = problems.take(task_weights, args, tasks)
    else:
        preference = problems.take(by_name, "--preference", args.preference) if method.reads_preference else {}
    problems.take(preference_weights, method, names, preference)
    options = options_of(method, args)
    responses = args.responses_per_prompt or 1
    return problems.take(build, method, names, kinds, preference, options, args.normalize_coefficients, responses)


def check_algorithm_options(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: options that the method does not read."""
    method = method_of(args)
    check_method_options(args, method, METHODS, problems)
    if args.log_gradients and issubclass(method, ScoreLevel):
        problems.add(f"--log_gradients: --algorithm {args.algorithm} mixes the scores, there is one gradient")
    if args.gram_fraction is not None and args.gradient_scope != "full":
        problems.add("--gram_fraction: serves --gradient_scope full, where every gradient is a backward pass")
    if args.gram_every is not None and args.gram_per == "micro_batch":
        problems.add("--gram_every: keeps the coefficients of a step; --gram_per micro_batch has several")
    if args.gradient_scope == "full" and args.gram_per == "micro_batch":
        problems.add("--gram_per micro_batch: serves --gradient_scope last_layer, where it spares work")
    if args.gram_per == "micro_batch" and args.micro_batch_tokens:
        problems.add("--micro_batch_tokens: sorts sequences by length; --gram_per micro_batch wants them at random")


def check_estimator(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: options that the estimator of advantages does not read, or one response a prompt where it compares."""
    estimator = estimator_of(args)
    if estimator is None:
        return
    if estimator.compares_responses and (args.responses_per_prompt or 1) < 2:
        problems.add(
            f"--advantage {estimator.name} compares the responses to a prompt: --responses_per_prompt must be 2 or more"
        )
    if args.group_without_std and estimator.name != "group":
        problems.add(f"--group_without_std: --advantage {estimator.name} divides by none")
    if args.critic == "shared" and not estimator.learns_values:
        problems.add(f"--critic shared: --advantage {estimator.name} has no critics")


def check_kept_graphs(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: `--keep_graphs` where passes of the rollout cannot serve the update."""
    if not args.keep_graphs:
        return
    rollout, _ = step_sizes(args)
    needed = {"per_device_train_batch_size": rollout, "gradient_accumulation_steps": 1, "ppo_epochs": 1}
    needed |= {"micro_batch_tokens": 0}
    others = [f"--{name} {value}" for name, value in needed.items() if getattr(args, name) != value]
    if others:
        problems.add(f"--keep_graphs: a rollout is to be one micro-batch of one step: {', '.join(others)}")
    if args.gram_fraction is not None:
        problems.add("--keep_graphs: --gram_fraction makes two micro-batches of a step")
    if args.zero_stage == 3:
        problems.add("--keep_graphs: --zero_stage 3 takes the weights away from a graph that waits")
    if kl_in(args) == "loss" and not learns_values(args):
        problems.add("--keep_graphs: there is none: no critics, and with the KL in the loss no pass of the policy")


def check_batch_sizes(args: argparse.Namespace, tasks: Sequence[Task]) -> int:
    """Optimizer steps a pass over a rollout; raises UserError unless the batch sizes divide each other, or see
    `check_step`."""
    loss = policy_loss_of(args)
    if loss.by_task:
        check_step(args, loss, tasks, world_size())
        return 1
    rollout, step = step_sizes(args)
    if rollout % step:
        copies = " × --responses_per_prompt" if args.responses_per_prompt else ""
        raise UserError(
            f"--per_device_prompt_batch_size × --generation_batches{copies} = {rollout} is not a multiple of"
            f" --per_device_train_batch_size × --gradient_accumulation_steps = {step}"
        )
    return rollout // step
