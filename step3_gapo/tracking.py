"""What a run shows: progress lines, TensorBoard, metrics.jsonl, sample responses, the path in the objectives' plane."""

import argparse
import math
from pathlib import Path
from types import ModuleType

import numpy
import torch

from step3_gapo.health import Health
from step3_gapo.rollout import Rollout
from utils.checkpoints.checkpoints import Checkpoints
from utils.output.metrics import Progress, start_record
from utils.process.distributed import all_reduce_sum, world_size
from utils.process.plain_text import markdown_text
from utils.scoring.objectives import Objective
from utils.scoring.verdicts import ALL

Scalars = dict[str, float]


class Tracker:
    """The main rank's record of a run."""

    def __init__(
        self, args: argparse.Namespace, objectives: list[Objective], total_steps: int, checkpoints: Checkpoints
    ):
        self.names, self.interval = [objective.name for objective in objectives], args.print_interval
        self.total_steps, self.run = total_steps, Path(args.output_dir).name
        self.path: list[list[float]] = []  # mean objective values of every step
        self.pyplot = drawing_library() if len(self.names) > 1 else None
        self.health = Health([objective.name for objective in objectives if objective.optimized])
        done = checkpoints.newest.step if checkpoints.newest else 0
        self.progress = Progress(total_steps, self.run, args.print_interval, done)
        start = checkpoints.facts["--actor_model"] if Path(args.actor_model).is_dir() else None
        self.logger = start_record(args, world_size(), checkpoints.newest, actor_model_sha256=start)
        for scalars in self.logger.history():
            self.observe(scalars["step"], scalars)

    def observe(self, step: int, scalars: Scalars) -> list[str]:
        """Take in a rollout's figures, new or of a run that goes on; what there is to warn of."""
        self.path.append([scalars.get(f"reward/{name}", math.nan) for name in self.names])
        return self.health.observe(step, scalars)

    def log(self, step: int, scalars: Scalars, rollout: Rollout) -> None:
        self.logger.log(step, scalars)
        warnings = self.observe(step, scalars)
        shown = {name: scalars[f"reward/{name}"] for name in self.names if f"reward/{name}" in scalars}
        shown["kl"] = scalars["kl"]
        if (passed := f"judge/{ALL}") in scalars:
            shown["passes"] = scalars[passed]
        self.progress.update(step, **shown)
        for warning in warnings:
            print(f"{self.run}: warning at step {step}: {warning}", flush=True)
        if step == 1 or step % self.interval == 0 or step == self.total_steps:
            self.logger.text("responses", sample_table(rollout), step)
            if self.pyplot:
                self.logger.image("pareto", path_image(self.pyplot, self.path, self.names), step)

    def close(self) -> None:
        self.logger.close()


def rollout_scalars(rollout: Rollout) -> Scalars:
    """Means over all ranks of what a rollout is worth; called on every rank."""
    experience = rollout.experience
    lengths = experience.mask.sum(dim=-1)
    scores, everywhere = experience.scores.items(), torch.ones_like(lengths)
    rows = {f"reward/{name}": (score, experience.judged[name]) for name, score in scores}
    if experience.log_probs is not None:  # else the update tells
        # The sum over tokens that the rewards are penalized by (k1), in nats a response.
        kl = ((experience.log_probs - experience.ref_log_probs) * experience.mask).sum(dim=-1)
        rows["kl"] = kl, everywhere
    rows |= {"response_length": (lengths, everywhere), "eos_rate": (experience.finished, everywhere)}
    rows |= {f"reward_std/{name}": (score.square(), experience.judged[name]) for name, score in scores}
    rows |= {f"truncated/{name}": (truncated, everywhere) for name, truncated in rollout.truncated.items()}
    rows |= {f"judge/{name}": (verdict.passed, verdict.judged) for name, verdict in rollout.verdicts.items()}
    rows |= {f"judged/{name}": (experience.judged[name], everywhere) for name in rollout.may_not_judge}
    rows |= rollout.figures
    # Each a value of every response, [batch], and which of them count, [batch].
    totals = all_reduce_sum(torch.stack([torch.stack([row.sum(), counted.sum()]) for row, counted in rows.values()]))
    means = {row: total / count for row, (total, count) in zip(rows, totals.tolist(), strict=True) if count}
    means["cost/generated_tokens"] = totals[list(rows).index("response_length"), 0].item()
    for name in experience.scores:
        if f"reward/{name}" in means:  # else nothing was judged
            means[f"reward_std/{name}"] = spread(means[f"reward_std/{name}"], means[f"reward/{name}"])
    means.setdefault("kl", math.nan)  # of a rollout that trains nothing
    return means | {"time/rollout": rollout.generation_seconds, "time/score": rollout.scoring_seconds}


def spread(mean_square: float, mean: float) -> float:
    """Standard deviation from moments; NaN of none."""
    return max(mean_square - mean**2, 0.0) ** 0.5 if math.isfinite(mean) else mean


def mean_scalars(updates: list[Scalars]) -> Scalars:
    """Mean over the optimizer steps of a rollout, tag by tag, of those that have it."""
    values: dict[str, list[float]] = {}
    for update in updates:
        for tag, value in update.items():
            values.setdefault(tag, []).append(value)
    return {tag: sum(numbers) / len(numbers) for tag, numbers in values.items()}


def sample_table(rollout: Rollout, rows: int = 4) -> str:
    """Markdown table of the first responses of a rollout and their values."""
    scores, judged = rollout.experience.scores, rollout.experience.judged
    lines = ["| prompt | response | " + " | ".join(scores) + " |", "|---" * (2 + len(scores)) + "|"]
    for i, (prompt, response) in enumerate(zip(rollout.prompts[:rows], rollout.responses[:rows], strict=True)):
        texts = [prompt.record.messages[-1]["content"], response]
        cells = [str(markdown_text(text)) for text in texts]
        cells += [f"{score[i].item():.2f}" if judged[name][i] else "" for name, score in scores.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drawing_library() -> ModuleType | None:
    """matplotlib's pyplot, without a screen; None, with a note, where only what training needs is installed."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError:
        print("note: matplotlib is not installed; TensorBoard gets no image of the path", flush=True)
        return None
    matplotlib.use("Agg")
    return pyplot


def path_image(pyplot: ModuleType, path: list[list[float]], names: list[str]) -> numpy.ndarray:
    """The run's path in the plane of its first two objectives; [height, width, 3] uint8."""
    figure, axes = pyplot.subplots(figsize=(5, 4), dpi=100)
    first, second = [point[0] for point in path], [point[1] for point in path]
    axes.plot(first, second, color="0.8", linewidth=1)
    points = axes.scatter(first, second, c=range(1, len(path) + 1), cmap="viridis", s=14)
    figure.colorbar(points, label="step")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    figure.tight_layout()
    figure.canvas.draw()
    image = numpy.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    pyplot.close(figure)
    return image
