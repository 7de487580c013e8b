"""What one objective more takes of memory: with a critic each, with a shared critic, without critics."""

import argparse
from dataclasses import dataclass
from typing import Any

from step3_gapo.update import StepBatches, optimizer_step
from tests.benchmarks.measure import give_memory_back, peak_bytes, single
from tests.benchmarks.memory import LENGTH, MEGABYTE, SEQUENCES, over_ranks
from tests.benchmarks.section import Job, Row, Section, Settings
from tests.benchmarks.synthetic import (
    Load,
    arguments_of,
    make_actor,
    make_critics,
    make_experience,
    make_update,
    shape_without_memory,
)
from utils.memory.dry_run import CUDA_OVERHEAD, HOST_OVERHEAD, USABLE
from utils.memory.plan import phases_of
from utils.memory.sizes import DEVICE, GIB, PlannedModel, Surroundings

OBJECTIVES = (2, 4)
GPU = 80  # GB
RESPONSES, GROUP = 16, 4  # of a planned rollout on a rank; those to one prompt, without critics
CRITICS: dict[str, dict[str, Any]] = {
    "one each": {"critic": "separate"},
    "shared": {"critic": "shared"},
    "none": {"advantage": "group", "responses_per_prompt": GROUP},
}
VARIANTS = (("one each", "last_layer"), ("shared", "last_layer"), ("none", "last_layer"), ("none", "full"))
WITH_LORA = tuple((critics, "full") for critics in CRITICS)  # where full is the default


@dataclass(frozen=True)
class Planned:
    """A run that is only planned: where, and under which flags."""

    label: str
    ranks: int
    flags: dict[str, Any]
    variants: tuple[tuple[str, str], ...]


PLANNED = (
    Planned("7b, LoRA", 1, {"zero_stage": 0, "lora_dim": 16}, WITH_LORA),
    Planned("7b, --offload", 1, {"zero_stage": 2, "offload": True}, VARIANTS),
    Planned("7b", 8, {"zero_stage": 3}, VARIANTS),
)


def run_arguments(load: Load, ranks: int, critics: str, scope: str, **changes: Any) -> argparse.Namespace:
    """Those of GAPO."""
    flags = {"algorithm": "gapo", "gradient_scope": scope} | CRITICS[critics] | changes
    return arguments_of(load, ranks, flags.pop("zero_stage"), **flags)


def measured_peak(load: Load, stage: int, ranks: int, objectives: int, critics: str, scope: str) -> int:
    """Bytes, the mean over ranks, at the peak of the second optimizer step of policy and critics in fresh processes."""
    give_memory_back()
    args = run_arguments(load, ranks, critics, scope, zero_stage=stage)
    actor = make_actor(load, args)
    values = make_critics(load, args, objectives) if critics != "none" else []
    batches = StepBatches(make_experience(actor, load, args, objectives))
    update = make_update(actor, args, objectives)

    def step() -> None:
        optimizer_step(update, values, batches, False, args)

    step()
    return over_ranks(peak_bytes(step)) // ranks


def planned_peak(case: Planned, objectives: int, critics: str, scope: str) -> int:
    """Bytes a rank of the fullest phase of a whole run on GPUs, with policy, reference and critics."""
    load = Load("7b", "bf16", 4 * case.ranks, 512, 512)
    sizes = {"per_device_prompt_batch_size": RESPONSES // CRITICS[critics].get("responses_per_prompt", 1)}
    args = run_arguments(load, case.ranks, critics, scope, gradient_checkpointing=True, **sizes, **case.flags)
    uses = ("policy", "reference", *("critic",) * (objectives if critics != "none" else 0))
    shape = shape_without_memory(load)
    around = Surroundings(
        case.ranks, True, int(USABLE * GPU * GIB), None, CUDA_OVERHEAD, HOST_OVERHEAD, (load.prompt, load.response),
        objectives=objectives, compares=True,
    )  # fmt: skip
    return max(phase.total(DEVICE) for phase in phases_of([PlannedModel(use, shape) for use in uses], args, around))


def jobs(settings: Settings) -> list[Job]:
    ranks, stage = min(settings.ranks), settings.usual_stage
    load = Load(settings.memory_size, settings.load.dtype, SEQUENCES * ranks, LENGTH, LENGTH)
    return [
        Job(
            f"critics: {critics}, {scope}, m = {m}",
            measured_peak,
            (load, stage, ranks, m, critics, scope),
            ranks,
            weight=4,
        )
        for critics, scope in VARIANTS
        for m in OBJECTIVES
    ]


def rows(settings: Settings, peaks: list[int]) -> list[Row]:
    """One row a variant: the measured ones, and those that are planned."""
    pairs = dict(zip(VARIANTS, zip(peaks[::2], peaks[1::2], strict=True), strict=True))
    stage, ranks = settings.usual_stage, min(settings.ranks)
    table = rows_of("measured", settings.memory_size, stage, ranks, pairs)
    for case in PLANNED:
        pairs = {variant: tuple(planned_peak(case, m, *variant) for m in OBJECTIVES) for variant in case.variants}
        table += rows_of("planned", case.label, case.flags["zero_stage"], case.ranks, pairs)
    return table


def rows_of(
    source: str, model: str, stage: int, ranks: int, pairs: dict[tuple[str, str], tuple[int, int]]
) -> list[Row]:
    """Of one model, from the peaks with few and with many objectives of every variant."""
    few, many = OBJECTIVES
    with_critics = next(pair for (critics, _), pair in pairs.items() if critics == "one each")
    return [
        {
            "figures": source,
            "model": model,
            "ZeRO": stage,
            "ranks": ranks,
            "critics": critics,
            "scope": scope,
            f"m = {few} [MB a rank]": round(pair[0] / MEGABYTE),
            f"m = {many} [MB a rank]": round(pair[1] / MEGABYTE),
            "an objective more [MB a rank]": round((pair[1] - pair[0]) / (many - few) / MEGABYTE),
            f"m = {many}, over a critic each": single(pair[1] / with_critics[1]),
            f"left of {GPU} GB [MB]": round(USABLE * GPU * 1024 - pair[1] / MEGABYTE) if source == "planned" else "",
        }
        for (critics, scope), pair in pairs.items()
    ]


SECTION = Section(
    title="Memory that one objective more takes, with and without critics",
    note="Measured: the peak of an optimizer step of policy and critics, each in fresh processes. Planned, and so"
    f" without a measurement: the fullest phase of a whole run in bf16, as by --dry_run, on GPUs of {GPU} GB, with"
    " policy, reference and critics. Score models are counted in neither: they are the same for all, and what is left"
    f" (at m = {OBJECTIVES[1]}) is theirs. An objective takes nothing where another phase than the update is fullest.",
    jobs=jobs,
    rows=rows,
)
