"""What a run tells its user: progress lines with an ETA, TensorBoard, and one JSON line a step."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from utils.output import write_json


def format_duration(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def hyperparameter_table(settings: dict[str, Any]) -> str:
    """Markdown table of a run's flags, for TensorBoard."""
    return "\n".join(["| flag | value |", "|---|---|"] + [f"| {flag} | {value} |" for flag, value in settings.items()])


class Progress:
    """Plain progress lines: they survive pipes, `tee` and several runs on one screen."""

    def __init__(self, total: int, label: str, every: int = 10):
        self.total, self.label, self.every = total, label, max(1, every)
        self.start = time.monotonic()

    def update(self, done: int, **figures: float) -> None:
        """Print a line at every `every`-th unit of work, at the first and at the last."""
        if done % self.every and done not in (1, self.total):
            return
        seconds = (time.monotonic() - self.start) / done
        parts = [f"{self.label} {done}/{self.total}"]
        parts += [f"{name} {value:.4g}" for name, value in figures.items()]
        parts += [f"{seconds:.2g} s/step", f"ETA {format_duration(seconds * (self.total - done))}"]
        print(" · ".join(parts), flush=True)


def start_record(args: argparse.Namespace, world_size: int, **facts: Any) -> "MetricsLogger":
    """Open the record of a run in `--output_dir`: TensorBoard, metrics.jsonl, and its settings in args.json.

    An older result there is no longer the outcome of this record: its config.json, the mark of a finished
    model folder, goes first.
    """
    output_dir = Path(args.output_dir)
    for old in ("config.json", "algorithm_state.json"):
        (output_dir / old).unlink(missing_ok=True)
    logger = MetricsLogger(output_dir)
    settings = vars(args) | {"world_size": world_size} | facts
    logger.text("hyperparameters", hyperparameter_table(settings), 0)
    write_json(output_dir / "args.json", settings)
    return logger


class MetricsLogger:
    """TensorBoard scalars and texts, and the same scalars as one line a step in `metrics.jsonl`.

    Only the main rank owns one. `output_dir/tensorboard` and `output_dir/metrics.jsonl` start empty: a
    run's folder holds one run.
    """

    def __init__(self, output_dir: str | Path):
        output_dir = Path(output_dir)
        folder = output_dir / "tensorboard"
        if folder.is_dir():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(folder)
        self.lines = (output_dir / "metrics.jsonl").open("w", encoding="utf-8")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        self.lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self.lines.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        self.writer.add_text(tag, text, step)

    def image(self, tag: str, image: Any, step: int) -> None:
        """`image`: [height, width, 3] uint8 array."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
        self.lines.close()
