"""Peak memory of the policy's update: gradient-level scopes against fixed weights."""

import torch

from tests.benchmarks.measure import give_memory_back, peak_bytes, single
from tests.benchmarks.section import Job, Row, Section, Settings
from tests.benchmarks.step import BASELINE, FLAGS, SCOPES
from tests.benchmarks.synthetic import SIZES, Load, arguments_of, make_actor, make_experience, make_update
from tests.updates import policy_step
from utils.process.distributed import all_reduce_sum, device

SEQUENCES, LENGTH = 2, 16  # a rank; tokens of prompt and of response: activations shall not hide the gradients
FLOAT32, MEGABYTE = 4, 2**20
SLACK = 0.1  # of the peak with fixed weights


def step_peak(load: Load, stage: int, ranks: int, objectives: int, variant: str) -> int:
    """Bytes, summed over ranks, at the peak of the second optimizer step of fresh processes."""
    give_memory_back()
    args = arguments_of(load, ranks, stage)
    actor = make_actor(load, args)
    experience = make_experience(actor, load, args, objectives)
    update = make_update(actor, args, objectives, **FLAGS[variant])
    policy_step(update, experience)
    return over_ranks(peak_bytes(lambda: policy_step(update, experience)))


def over_ranks(size: int) -> int:
    """The sum over ranks of what each of them has."""
    return int(all_reduce_sum(torch.tensor(size, dtype=torch.float64, device=device())).item())


def cases(settings: Settings) -> list[tuple[int, int, int, str]]:
    """(stage, ranks, m, variant) of everything measured. Fixed weights mix advantages: m makes no difference there."""
    few, many = min(settings.objectives), max(settings.objectives)
    variants = [(few, BASELINE), *((m, scope) for m in sorted({few, many}) for scope in SCOPES)]
    return [(stage, ranks, *variant) for stage in settings.stages for ranks in settings.ranks for variant in variants]


def jobs(settings: Settings) -> list[Job]:
    size, dtype = settings.memory_size, settings.load.dtype
    return [
        Job(
            f"ZeRO-{stage}, ranks: {ranks}, m = {m}, {variant}",
            step_peak,
            (Load(size, dtype, SEQUENCES * ranks, LENGTH, LENGTH), stage, ranks, m, variant),
            ranks,
            weight=4,
        )
        for stage, ranks, m, variant in cases(settings)
    ]


def rows(settings: Settings, peaks: list[int]) -> list[Row]:
    """One row an m, from the peaks of all cases."""
    table, peak_of = [], dict(zip(cases(settings), peaks, strict=True))
    baselines = {case[:2]: peak for case, peak in peak_of.items() if case[3] == BASELINE}
    for stage, ranks, m in dict.fromkeys(case[:3] for case in peak_of):
        baseline, shards = baselines[stage, ranks], m * SIZES[settings.memory_size].parameters * FLOAT32
        peaks_here = {scope: peak_of[stage, ranks, m, scope] for scope in SCOPES}
        row = {"ZeRO": stage, "ranks": ranks, "m": m}
        for scope, peak in peaks_here.items():
            row[scope] = single(peak / baseline, bar=1 + SLACK + shards / baseline)
        for scope, peak in peaks_here.items():
            row[f"{scope}: more [MB a rank]"] = round((peak - baseline) / ranks / MEGABYTE)
        row["m gradients [MB a rank]"] = round(shards / ranks / MEGABYTE)
        table.append(row | {f"{BASELINE} [MB a rank]": round(baseline / ranks / MEGABYTE)})
    return table


SECTION = Section(
    title="Peak memory of the policy's update, over that of morlhf",
    note="Every number from fresh processes, without critics, whose memory is the same for all and would hide the"
    " difference. Allowed: m float32 gradients, partitioned, and 10% of morlhf's peak. On CPU the resident memory,"
    " libraries included; on GPU what torch has allocated.",
    jobs=jobs,
    rows=rows,
)
