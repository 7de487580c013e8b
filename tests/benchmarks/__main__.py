"""Entry point of the benchmarks: python -m tests.benchmarks --help"""

import os

# Before torch is imported: as many threads a rank as there are cores would have the ranks fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import (
    accumulation,
    critic_free,
    generation,
    growth,
    loading,
    memory,
    objectives_memory,
    pama,
    peers,
    pieces,
    plan,
    rollout,
    step,
)
from tests.benchmarks.arguments import parse_settings
from tests.benchmarks.ranks import run_ranks
from tests.benchmarks.section import Job, Settings
from tests.benchmarks.tables import as_data, heading, markdown
from utils.process.errors import run_main

MODULES = (
    step, critic_free, memory, objectives_memory, loading, plan, growth, pama, accumulation, rollout, generation,
    pieces, peers,
)  # fmt: skip
SECTIONS = {module.__name__.rpartition(".")[2]: module.SECTION for module in MODULES}


def main() -> None:
    settings = parse_settings(list(SECTIONS))
    text, data = [heading(settings)], {}
    print(text[0], flush=True)
    for name, answers in run_all({name: SECTIONS[name].jobs(settings) for name in settings.sections}):
        section = SECTIONS[name]
        rows = section.rows(settings, answers)
        text.append(markdown(section, rows))
        data[name] = as_data(section, rows)
        print(text[-1], flush=True)
    if settings.output:
        write(settings, text, data)


def run_all(sections: dict[str, list[Job]]) -> Iterator[tuple[str, list[Any]]]:
    """Section after section, with the answers of its jobs; says on stderr how far it is."""
    total = sum(job.weight for jobs in sections.values() for job in jobs)
    start, done = time.monotonic(), 0.0
    for name, jobs in sections.items():
        answers = []
        for job in jobs:
            answers.append(run_ranks(job.function, *job.arguments, ranks=job.ranks))
            done += job.weight
            elapsed = time.monotonic() - start
            left = elapsed * (total / done - 1)
            print(f"[{done / total:4.0%}] {name}: {job.label}; {clock(elapsed)}, ETA {clock(left)}", file=sys.stderr)
        yield name, answers


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def write(settings: Settings, text: list[str], data: dict[str, Any]) -> None:
    path = Path(settings.output)
    if path.suffix == ".json":
        path.write_text(json.dumps({"heading": text[0], "sections": data}, indent=2, ensure_ascii=False) + "\n")
    else:
        path.write_text("\n".join(text))


if __name__ == "__main__":
    run_main(main)
