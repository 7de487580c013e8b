"""The command line of step 3 and everything about it that can be checked before a model is built."""

import argparse
import dataclasses
import math
from typing import Any

from step3_gapo.algorithms import ALGORITHMS, FIXED, WEIGHTED, Algorithm, build_algorithm
from step3_gapo.gram_weightings import GRAM_WEIGHTINGS
from utils.arguments import (
    Parser,
    adam_beta,
    add_data_arguments,
    add_deepspeed_arguments,
    add_optimization_arguments,
    fraction,
    named_number,
    named_value,
    non_negative_float,
    positive_float,
    positive_int,
)
from utils.errors import UserError
from utils.objectives import Objective, add_score_model_arguments, named_objectives


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Step 3: align a policy to several objectives with PPO, GAPO and their relatives.")
    add_objective_arguments(parser)
    add_algorithm_arguments(parser)
    add_gradient_arguments(parser)
    add_data_arguments(parser, "prompts")
    add_rollout_arguments(parser)
    add_ppo_arguments(parser)
    add_optimization_arguments(parser)
    add_deepspeed_arguments(parser)
    args = parser.parse_args(argv)
    if args.rescale_power is None and args.algorithm == "gapo":
        args.rescale_power = 1.0
    return args


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models and objectives")
    group.add_argument(
        "--actor_model", required=True, metavar="PATH", help="SFT policy: start, reference and tokenizer"
    )
    add_score_model_arguments(group)
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
        "--critic",
        choices=("separate", "shared"),
        default="separate",
        help="a critic an objective, or one trunk with a head an objective",
    )


def add_algorithm_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the objectives combine")
    group.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        required=True,
        help="ppo: one objective; morlhf: fixed weights of the rewards; mgda: min-norm weights of the"
        " gradients; gapo: min-norm weights of rescaled gradients; p_gapo: preference over unit"
        " gradients; the others: torchjd's weightings of the gradients",
    )
    group.add_argument(
        "--rescale_power",
        type=non_negative_float,
        default=None,
        metavar="P",
        help="gapo: gradients are divided by the P-th power of their norm; 1 unless given",
    )
    group.add_argument(
        "--preference",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=W",
        help=f"{', '.join(WEIGHTED)}: weight of every objective, sum 1 (default: equal)",
    )
    group.add_argument(
        "--weighting_options",
        type=named_value,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="torchjd's weightings: "
        + ", ".join(
            f"{name} {key}={default}"
            for name, weighting in GRAM_WEIGHTINGS.items()
            for key, (_, default) in weighting.options.items()
        ),
    )
    group.add_argument(
        "--normalize_coefficients",
        action="store_true",
        help="gradient-level algorithms: scale the coefficients of the losses to sum 1",
    )


def add_gradient_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which gradients are compared")
    group.add_argument(
        "--gradient_scope",
        choices=("last_layer", "full"),
        default="last_layer",
        help="gradients that gradient-level algorithms compare: those of the output head (cheap, the paper's choice),"
        " or of all parameters (exact; a backward pass an objective)",
    )
    group.add_argument(
        "--gram_per",
        choices=("step", "micro_batch"),
        default="step",
        help="last_layer with accumulation: one set of coefficients an optimizer step (exact), or one a micro-batch"
        " (noisier; spares a forward pass where the policy has moved since the rollout)",
    )
    group.add_argument(
        "--log_gradients",
        action="store_true",
        help="log norms and cosines of the objectives' last-layer gradients for morlhf, too",
    )


def add_rollout_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rollout")
    group.add_argument("--max_prompt_length", type=positive_int, default=256, help="tokens")
    group.add_argument("--max_new_tokens", type=positive_int, default=256, help="tokens of a response")
    group.add_argument("--temperature", type=positive_float, default=1.0, help="sampling temperature")
    group.add_argument(
        "--per_device_prompt_batch_size", type=positive_int, default=16, help="prompts generated at once"
    )
    group.add_argument("--generation_batches", type=positive_int, default=1, help="such batches before each update")
    group.add_argument(
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
    group.add_argument("--kl_coeff", type=non_negative_float, default=0.05, help="β of the KL penalty in every reward")
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


def objectives_of(args: argparse.Namespace) -> list[Objective]:
    """The named objectives, rewards first, in the order given.

    Raises:
        UserError: see `named_objectives`; an unknown name in --monitor or --score_scale, a scale not positive.
    """
    objectives = named_objectives(args)
    names = [objective.name for objective in objectives]
    for flag, given in (("--monitor", args.monitor), ("--score_scale", [name for name, _ in args.score_scale])):
        for name in given:
            if name not in names:
                raise UserError(f"{flag} {name}: no such objective (there are {', '.join(names)})")
    scales = by_name("--score_scale", args.score_scale)
    for name, scale in scales.items():
        if not 0 < scale < math.inf:
            raise UserError(f"--score_scale {name}={scale:g}: must be positive")
    return [
        dataclasses.replace(o, scale=scales.get(o.name, 1.0), optimized=o.name not in args.monitor) for o in objectives
    ]


def algorithm_of(args: argparse.Namespace, objectives: list[Objective]) -> Algorithm:
    """The algorithm for the optimized objectives; raises UserError when flags do not fit together."""
    optimized = [objective.name for objective in objectives if objective.optimized]
    if not optimized:
        raise UserError("--monitor: no objective is left to optimize")
    preference = by_name("--preference", args.preference)
    if args.rescale_power is not None and args.algorithm != "gapo":
        raise UserError(f"--rescale_power: --algorithm {args.algorithm} has none (it serves gapo)")
    if args.algorithm in FIXED:
        if args.normalize_coefficients:
            raise UserError(f"--normalize_coefficients: the weights of --algorithm {args.algorithm} are fixed")
        if args.gradient_scope == "full":
            raise UserError(f"--gradient_scope full: --algorithm {args.algorithm} compares no gradients")
    if args.gradient_scope == "full" and args.gram_per == "micro_batch":
        raise UserError("--gram_per micro_batch: serves --gradient_scope last_layer, where it spares work")
    return build_algorithm(
        args.algorithm,
        optimized,
        preference,
        args.rescale_power,
        args.normalize_coefficients,
        by_name("--weighting_options", args.weighting_options),
    )


def by_name(flag: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """NAME=VALUE arguments as a dictionary; raises UserError for a name given twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UserError(f"{flag}: a name is given twice ({', '.join(name for name, _ in pairs)})")
    return values


def check_batch_sizes(args: argparse.Namespace) -> int:
    """Optimizer steps a pass over a rollout; raises UserError unless the batch sizes divide each other."""
    rollout = args.per_device_prompt_batch_size * args.generation_batches
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if rollout % step:
        raise UserError(
            f"--per_device_prompt_batch_size × --generation_batches = {rollout} is not a multiple of"
            f" --per_device_train_batch_size × --gradient_accumulation_steps = {step}"
        )
    return rollout // step
