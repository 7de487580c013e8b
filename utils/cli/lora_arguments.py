"""The flags of LoRA, of every stage that trains a policy."""

import argparse

from utils.cli.free_flags import add_free
from utils.cli.types import non_negative_int, positive_float
from utils.process.errors import AT_ONCE, Problems


def add_lora_arguments(parser: argparse.ArgumentParser, shared: str) -> None:
    """`shared` says which models are adapters around one base."""
    group = parser.add_argument_group("LoRA")
    group.add_argument(
        "--lora_dim",
        type=non_negative_int,
        default=0,
        metavar="R",
        help=f"train adapters W + (A / R) B A of this rank in place of all weights; {shared} share one frozen"
        " model, the policy's; 0: off",
    )
    group.add_argument(
        "--lora_alpha", type=positive_float, default=None, metavar="A", help="A of the adapters; 2 R unless given"
    )
    group.add_argument(
        "--lora_target_modules",
        nargs="+",
        default=None,
        metavar="NAME",
        help="layers with adapters, such as q_proj v_proj (default: all linear layers of the decoder, not the head)",
    )
    add_free(
        group,
        "--lora_export",
        choices=("merged", "adapter"),
        default=None,
        help="export a plain model (merged, unless given), or the policy's adapters in peft's format",
    )


def set_lora_defaults(args: argparse.Namespace) -> None:
    """Fill in what was not given."""
    if args.lora_dim:
        args.lora_alpha, args.lora_export = args.lora_alpha or 2.0 * args.lora_dim, args.lora_export or "merged"


def check_lora_options(args: argparse.Namespace, problems: Problems = AT_ONCE) -> None:
    """Problems: LoRA's options without LoRA."""
    for name in ("lora_alpha", "lora_target_modules", "lora_export"):
        if not args.lora_dim and getattr(args, name) is not None:
            problems.add(f"--{name}: has no effect without --lora_dim")
