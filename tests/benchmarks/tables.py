"""Tables of the results as Markdown and as data."""

import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from tests.benchmarks.measure import Ratio
from tests.benchmarks.section import Row, Section, Settings


def markdown(section: Section, rows: list[Row]) -> str:
    """Title, note and table; all rows have the columns of the first."""
    columns = list(rows[0])
    lines = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    table = "\n".join(f"| {' | '.join(line)} |" for line in padded)
    return f"## {section.title}\n\n{section.note}\n\n{table}\n"


def as_data(section: Section, rows: list[Row]) -> dict[str, Any]:
    """The same for JSON; a ratio is a dictionary."""
    cells = [{name: data_of(cell) for name, cell in row.items()} for row in rows]
    return {"title": section.title, "note": section.note, "rows": cells}


def data_of(cell: Any) -> Any:
    return asdict(cell) | {"holds": cell.holds} if isinstance(cell, Ratio) else cell


def heading(settings: Settings) -> str:
    """What was measured on what."""
    load = settings.load
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({os.cpu_count()} cores)"
    return (
        f"# Benchmarks\n\n{device}, {platform.system()}, torch {torch.__version__}, {load.dtype};"
        f" {os.environ.get('OMP_NUM_THREADS')} thread a rank. Model {load.size}, {load.batch} sequences an optimizer"
        f" step, prompts of up to {load.prompt} and responses of up to {load.response} tokens. Ratios: median and"
        f" quartiles of {settings.rounds} rounds; in every round all variants of a row take their turn.\n"
    )
