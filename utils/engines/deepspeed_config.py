"""What DeepSpeed is told: configurations, from the flags all stages share, and to be quiet."""

import argparse
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


def training_config(
    args: argparse.Namespace, micro_batch_size: int, world_size: int, gradient_accumulation_steps: int
) -> dict[str, Any]:
    """Configuration of an engine that trains.

    Args:
        args: flags of `utils.cli.arguments.add_deepspeed_arguments`.
        micro_batch_size: sequences a rank handles in one forward pass.
    """
    if getattr(args, "micro_batch_tokens", 0):
        # Steps have as many micro-batches as their tokens ask for. Where one is configured, DeepSpeed keeps no sums.
        gradient_accumulation_steps = max(gradient_accumulation_steps, 2)
    optimizer_offload = {"device": "cpu" if args.offload else "none"}
    return {
        "train_batch_size": micro_batch_size * gradient_accumulation_steps * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": args.max_grad_norm,
        "bf16": {"enabled": args.dtype == "bf16"},
        "zero_optimization": {
            "stage": args.zero_stage,
            "offload_optimizer": optimizer_offload,
            "offload_param": {"device": "cpu" if args.offload and args.zero_stage == 3 else "none"},
        },
        # torch's AdamW: nothing to compile, the same optimizer on CPU and GPU.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the stages print their own progress
        "wall_clock_breakdown": False,
    }


def frozen_config(args: argparse.Namespace) -> dict[str, Any]:
    """Configuration of an engine that only runs forward: partitioned under ZeRO-3, whole otherwise."""
    on_host = args.offload or getattr(args, "park_frozen_models", False)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": args.dtype == "bf16"},
        "zero_optimization": {
            "stage": 3 if args.zero_stage == 3 else 0,
            "offload_param": {"device": "cpu" if on_host and args.zero_stage == 3 else "none"},
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """No news from DeepSpeed on stdout; its warnings and errors as ever."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
