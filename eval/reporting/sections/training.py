"""Curves over training."""

from eval.reporting.blocks import Picture, Report, Section, Text
from eval.reporting.curves import plot_training_curves
from eval.results.runs import condition_title

PLACE = 80


def make(report: Report) -> Section:
    pictures = [picture for condition in report.conditions if (picture := draw(report, condition))]
    return Section("Training", "Training", pictures or [Text(["No run left training metrics."], note=True)])


def draw(report: Report, condition: str) -> Picture | None:
    """The curves of one condition, if its runs left any."""
    title, file = condition_title(condition), report.file_of("training_curves", condition)
    if not plot_training_curves(report.numbers.groups, condition, report.folder / file):
        return None
    seeds = "with a band of one standard deviation over seeds, or over the faint steps of a single run"
    lines = seeds if report.several_seeds else "faint ones the steps themselves"
    caption = (
        "scores, divergence and length of the responses sampled in training. Strong lines are moving averages,"
        f" {lines}."
    )
    caption = f"{title}: {caption}" if report.several_conditions else caption
    alternative = f"Training curves, {title}" if report.several_conditions else "Training curves"
    return Picture(file, alternative, [caption[0].upper() + caption[1:]])
