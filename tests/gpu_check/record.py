"""The table of the checks, printed and written as it grows."""

import time
from datetime import timedelta
from pathlib import Path

from tests.gpu_check.jobs import FAILED, LATE, MISSING, OK, Job, Row
from utils.output.files import write_text

COLUMNS = ("section", "check", "status", "result", "seconds")


class Record:
    """Rows on the screen and in `<folder>/gpu_check.md`, which is whole after every one of them.

    Args:
        title: first line of the file.
        seconds: that the command may take.
    """

    def __init__(self, folder: Path, title: str, seconds: float):
        self.path, self.log = folder / "gpu_check.md", folder / "gpu_check.log"
        self.title, self.seconds, self.start = title, seconds, time.monotonic()
        self.rows: list[Row] = []
        self.log.write_text("")
        self.write("")

    def begin(self, job: Job, limit: float, later: list[str]) -> None:
        """Say what is being done, and which sections are left."""
        left = ", ".join(dict.fromkeys(later)) or "nothing"
        at_work = f"{self.clock()} {job.section}: {job.label}, up to {limit:.0f} s; after it {left}"
        print(f"[{at_work}]", flush=True)
        self.write(f"At work: {at_work}")

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.section} | {row.check} | {row.status} | {row.result} | {row.seconds:.1f} s", flush=True)
        self.write(f"Going on: {self.clock()}")

    def finish(self) -> None:
        self.write(f"Complete: {self.clock()}, {self.summary()}")
        print(f"{self.summary()} in {self.clock()}; {self.path}", flush=True)

    def clock(self) -> str:
        return " of ".join(str(timedelta(seconds=round(s))) for s in (time.monotonic() - self.start, self.seconds))

    def summary(self) -> str:
        counts = {status: sum(row.status == status for row in self.rows) for status in (OK, FAILED, MISSING, LATE)}
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    @property
    def failed(self) -> bool:
        return any(row.status == FAILED for row in self.rows)

    def write(self, last_line: str) -> None:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        write_text(self.path, f"# {self.title}\n\n{table}\n\n{last_line}\n")


def cells(row: Row) -> list[str]:
    """Of one line of the table."""
    texts = [row.section, row.check, row.status, row.result, f"{row.seconds:.1f}"]
    return [text.replace("|", "\\|") for text in texts]
