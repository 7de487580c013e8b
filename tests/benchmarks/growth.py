"""How the ratios grow with the number of objectives and with the model."""

from dataclasses import replace

from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.step import compare, time_steps
from tests.benchmarks.synthetic import SIZES, Load

SEQUENCES, LENGTH = 8, 48  # of a step with larger models; tokens of prompt and of response


def growth_rows(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> list[Row]:
    seconds = time_steps(load, stage, ranks, objectives, rounds)
    return [
        {"parameters": f"{SIZES[load.size].parameters:,}", "m": m} | compare(seconds, m, bars=False) for m in objectives
    ]


def jobs(settings: Settings) -> list[Job]:
    ranks, load = min(settings.ranks), settings.load
    small = replace(load, batch=max(ranks, load.batch // 4))
    cases = [(small, settings.growth_objectives, 15.0)]
    for size in settings.growth_sizes:
        weight = 2 + SIZES[size].parameters / 4e5
        cases.append((Load(size, load.dtype, SEQUENCES * ranks, LENGTH, LENGTH), (2,), weight))
    return [
        Job(
            f"{case.size}, m = {', '.join(map(str, objectives))}",
            growth_rows,
            (case, settings.usual_stage, ranks, objectives, settings.rounds),
            ranks,
            weight,
        )
        for case, objectives, weight in cases
    ]


SECTION = Section(
    title="Time of one optimizer step, over that of morlhf, by objectives and by size of the model",
    note="As above, under one ZeRO stage; first by objectives, then by size.",
    jobs=jobs,
    rows=in_order,
)
