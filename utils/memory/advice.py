"""Which flags make a run fit: the cheapest one, or the fewest together, found by planning again with them."""

import argparse
import itertools
from typing import Any

from utils.memory.plan import Phase, phases_of
from utils.memory.sizes import DEVICE, HOST, PlannedModel, Surroundings

Changes = dict[str, Any]  # flag -> value

LORA_DIM, CHUNK = 16, 1024  # what is tried
MOST_TOGETHER = 4
HOST_FLAGS = {"offload", "park_frozen_models"}  # move what lies on the device to the host


def excess(phases: list[Phase], around: Surroundings) -> dict[str, tuple[str, int]]:
    """{phase: (place, bytes too many)} of the phases that do not fit."""
    found = {}
    for phase in phases:
        for place, memory in ((DEVICE, around.memory), (HOST, around.host_memory)):
            if memory is not None and phase.total(place) > memory:
                found.setdefault(phase.name, (place, phase.total(place) - memory))
    return found


def remedies(
    args: argparse.Namespace, around: Surroundings, on_host: bool = True, critics: bool = True
) -> list[Changes]:
    """What could be changed, from the cheapest in speed and quality to the dearest; only flags that the stage has.

    Args:
        on_host: whether the host's memory may take what the device cannot.
        critics: whether there are some.
    """
    stages = [stage for stage in (1, 2, 3) if stage > args.zero_stage and around.ranks > 1]
    candidates: list[Changes] = [
        {"keep_graphs": False},
        *([{"zero_stage": 0}] if around.ranks == 1 and not args.offload else []),  # shares nothing, copies and gathers
        {"logits_chunk_size": CHUNK},
        *smaller_batches("per_device_prompt_batch_size", "generation_batches", args),
        *({"zero_stage": stage} for stage in stages if stage < 3),
        {"gradient_checkpointing": True},
        *smaller_batches("per_device_train_batch_size", "gradient_accumulation_steps", args),
        *smaller_batches("per_device_eval_batch_size", None, args),
        *([{"park_frozen_models": True}] if on_host else []),
        *({"zero_stage": stage} for stage in stages if stage == 3),
        *(offloads(args) if on_host else []),
        *([{"critic": "shared"}] if critics else []),
        {"dtype": "bf16"},
        {"lora_dim": LORA_DIM},
        {"gradient_scope": "last_layer"},
    ]
    if getattr(args, "keep_graphs", False):
        candidates = [c | {"keep_graphs": False} if ends_kept_graphs(c) else c for c in candidates]
    return [c for c in candidates if is_change(c, args)]


def ends_kept_graphs(changes: Changes) -> bool:
    """Whether `--keep_graphs` is refused beside these flags."""
    several = {"per_device_prompt_batch_size", "per_device_train_batch_size"} & changes.keys()
    return bool(several) or changes.get("zero_stage") == 3


def offloads(args: argparse.Namespace) -> list[Changes]:
    """The optimizer on the CPU; under ZeRO-3 the weights, too, which serves a single rank as well."""
    return [{"offload": True, "zero_stage": stage} for stage in (args.zero_stage or 2, 3)]


def smaller_batches(batch: str, factor: str | None, args: argparse.Namespace) -> list[Changes]:
    """Halves of a batch size, `factor` times as often."""
    size, found = getattr(args, batch, 1), []
    times = 1
    while size % 2 == 0:
        size, times = size // 2, 2 * times
        found.append({batch: size} | ({factor: getattr(args, factor) * times} if factor else {}))
    return found


def is_change(changes: Changes, args: argparse.Namespace) -> bool:
    """Whether the stage has these flags, and at least one is otherwise now."""
    known = all(hasattr(args, flag) for flag in changes)
    limited = changes.get("logits_chunk_size") and getattr(args, "logits_chunk_size", 0)
    tuned = changes.get("lora_dim") and getattr(args, "lora_dim", 0)
    return known and not limited and not tuned and any(getattr(args, f) != v for f, v in changes.items())


def cheapest_fit(
    models: list[PlannedModel], args: argparse.Namespace, around: Surroundings, on_host: bool = True
) -> tuple[Changes | None, list[Phase]]:
    """The cheapest change that makes every phase fit, else the fewest together; their phases.

    Args:
        on_host: see `remedies`.

    Returns:
        None where nothing does, with the phases of what comes closest.
    """
    tried: list[tuple[int, list[Phase]]] = []
    candidates = remedies(args, around, on_host, critics=any(model.use == "critic" for model in models))
    for count in range(1, MOST_TOGETHER + 1):
        for group in itertools.combinations(candidates, count):
            changes = {flag: value for one in group for flag, value in one.items()}
            if len(changes) < sum(map(len, group)):
                continue  # two values of one flag
            phases = phases_of(models, argparse.Namespace(**vars(args) | changes), around)
            missing = sum(size for _, size in excess(phases, around).values())
            if not missing:
                return {flag: value for flag, value in changes.items() if getattr(args, flag) != value}, phases
            tried.append((missing, phases))
    return None, min(tried, key=lambda item: item[0], default=(0, []))[1]


def as_flags(changes: Changes) -> str:
    """As words of the command line."""
    words = {True: "--{}", False: "no --{}"}
    return " ".join(
        words[value].format(flag) if isinstance(value, bool) else f"--{flag} {value}" for flag, value in changes.items()
    )
