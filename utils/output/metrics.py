"""What a run tells its user: progress lines with an ETA, TensorBoard, and one JSON line a step."""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from utils.output.files import mark_unfinished, write_json, write_text

METRICS = "metrics.jsonl"


class Saved(Protocol):
    """A checkpoint: its folder has the metrics up to its step."""

    folder: Path
    step: int


def format_duration(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def hyperparameter_table(settings: dict[str, Any]) -> str:
    """Markdown table of a run's flags, for TensorBoard."""
    return "\n".join(["| flag | value |", "|---|---|"] + [f"| {flag} | {value} |" for flag, value in settings.items()])


class Progress:
    """Plain progress lines: they survive pipes, `tee` and several runs on one screen.

    Args:
        done_before: how much of `total` an earlier, interrupted run has done.
    """

    def __init__(self, total: int, label: str, every: int = 10, done_before: int = 0):
        self.total, self.label, self.every, self.done_before = total, label, max(1, every), done_before
        self.start = time.monotonic()

    def update(self, done: int, **figures: float) -> None:
        """Print a line at every `every`-th unit of work, at the first and at the last."""
        if done % self.every and done not in (self.done_before + 1, self.total):
            return
        seconds = (time.monotonic() - self.start) / (done - self.done_before)
        parts = [f"{self.label} {done}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in figures.items()]
        parts += [f"{seconds:.2g} s/step", f"ETA {format_duration(seconds * (self.total - done))}"]
        print(" · ".join(parts), flush=True)


def start_record(args: argparse.Namespace, world_size: int, checkpoint: Saved | None, **facts: Any) -> "MetricsLogger":
    """Open the record of a run in `--output_dir`: TensorBoard, metrics.jsonl, and its settings in args.json.

    An older result there is no longer the outcome of this record, which a file says until the run is finished.

    Args:
        checkpoint: what the run goes on from, if anything.
    """
    output_dir = Path(args.output_dir)
    mark_unfinished(output_dir)
    settings = vars(args) | {"world_size": world_size} | facts
    if checkpoint:
        logger = MetricsLogger(output_dir, checkpoint.folder / METRICS, checkpoint.step)
    else:
        (output_dir / "algorithm_state.json").unlink(missing_ok=True)
        logger = MetricsLogger(output_dir)
        logger.text("hyperparameters", hyperparameter_table(settings), 0)
    write_json(output_dir / "args.json", settings)
    return logger


class MetricsLogger:
    """TensorBoard scalars and texts, and the same scalars as one line a step in `metrics.jsonl`.

    Only the main rank owns one. `output_dir/tensorboard` and `output_dir/metrics.jsonl` start empty: a
    run's folder holds one run. A run that goes on takes the lines it had up to then, and has TensorBoard
    forget the points that come after them.

    Args:
        lines, step: the metrics of a checkpoint and its step.
    """

    def __init__(self, output_dir: str | Path, lines: Path | None = None, step: int = 0):
        output_dir = Path(output_dir)
        folder, self.path = output_dir / "tensorboard", output_dir / METRICS
        if lines:
            write_text(self.path, lines.read_text(encoding="utf-8"))
        else:
            self.path.unlink(missing_ok=True)
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(folder, purge_step=step + 1 if lines else None)
        self.lines = self.path.open("a", encoding="utf-8")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        self.lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self.lines.flush()

    def history(self) -> list[dict[str, float]]:
        """The scalars logged so far, as in metrics.jsonl."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, text, step)

    def image(self, tag: str, image: Any, step: int) -> None:
        """`image`: [height, width, 3] uint8 array."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def copy_to(self, folder: Path) -> None:
        """Put the metrics so far into a checkpoint; TensorBoard's points so far reach the disk."""
        self.writer.flush()
        shutil.copyfile(self.path, folder / METRICS)

    def close(self) -> None:
        self.writer.close()
        self.lines.close()
