"""Whether a run may go on from a checkpoint: what must be the same."""

import json
import platform
from typing import Any

import deepspeed
import torch
import transformers

from utils.cli.free_flags import free_flags

# Engines of other kinds, other objectives: nothing goes on with these.
FIXED = (
    "stage ", "objectives ", "--dtype ", "--advantage ", "--policy_loss ", "--critic ", "--export ", "--lora_dim ",
    "--lora_alpha ", "--lora_target_modules ", "base of the adapters (--actor_model) ",
)  # fmt: skip
# Told by their content: see `Facts`.
FLAGS_BY_CONTENT = {
    "actor_model", "reward_model", "cost_model", "reward_function", "score_template", "model_name_or_path", "data",
    "validation_data", "prompt_pairs", "validation_prompt_pairs", "objective", "validation_objective", "margin_model",
    "margin_reward", "margin_cost", "margin_function", "judge", "tasks",
    "judge_model", "judge_question", "judge_template", "judge_words",
}  # fmt: skip
# Compared over all ranks where the number of ranks has changed.
BATCH_FLAGS = {
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_prompt_batch_size", "generation_batches",
}  # fmt: skip
SEQUENCES = "sequences an optimizer step (--per_device_train_batch_size and others)"
PROMPTS = "prompts a rollout (--per_device_prompt_batch_size and others)"
ONE_STEP_A_ROLLOUT = "--tasks"  # a fact of runs whose tasks have a loss each, on all of a rollout
Facts = dict[str, Any]  # what a run's result depends on beside its flags: {description: fingerprint or number}


def differences(manifest: dict[str, Any], flags: dict[str, Any], facts: Facts, ranks: int) -> list[str]:
    """What is other now than when the checkpoint was made, of all that changes the result."""
    other_ranks = manifest["world_size"] != ranks
    unseen = free_flags() | FLAGS_BY_CONTENT | (BATCH_FLAGS if other_ranks else set())
    then, now = manifest["flags"], json.loads(json.dumps(flags))
    then, now = ({f"--{n}": v for n, v in part.items() if n not in unseen} for part in (then, now))
    then, now = then | manifest["facts"], now | json.loads(json.dumps(facts))
    if other_ranks:
        one_step = ONE_STEP_A_ROLLOUT in facts
        then |= batches(manifest["flags"], manifest["world_size"], one_step)
        now |= batches(flags, ranks, one_step)
    then, now = ({n: None if value == [] else value for n, value in part.items()} for part in (then, now))
    names = dict.fromkeys([*then, *(n for n, value in now.items() if value or n in then)])  # no new flags that are off
    return [f"{n} {shown(then.get(n))} -> {shown(now.get(n))}" for n in names if then.get(n) != now.get(n)]


def shown(value: Any) -> str:
    """A value as on the command line; fingerprints by their first digits."""
    if value is None:
        return "(not given)"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"contents {text[:8]}" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def batches(flags: dict[str, Any], ranks: int, one_step: bool = False) -> dict[str, int]:
    """Batch sizes over all ranks: what has to stay when their number changes.

    Args:
        one_step: an optimizer step is on all of a rollout.
    """
    micro_batch = flags["per_device_train_batch_size"] * ranks
    found = {} if one_step else {SEQUENCES: micro_batch * flags["gradient_accumulation_steps"]}
    if flags.get("gram_per") == "micro_batch":
        found[f"{SEQUENCES}, each micro-batch"] = micro_batch
    if "generation_batches" in flags:
        found[PROMPTS] = flags["per_device_prompt_batch_size"] * flags["generation_batches"] * ranks
    return found


def library_versions() -> dict[str, str]:
    libraries = {module.__name__: module.__version__ for module in (torch, deepspeed, transformers)}
    return {"python": platform.python_version()} | libraries
