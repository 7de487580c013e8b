"""Where the policies stand in the planes of the objectives, and who moves under another condition."""

from eval.reporting.blocks import MARKDOWN, Block, Picture, Report, Section, Text
from eval.reporting.plane import MOST_OBJECTIVES, plot_moves, plot_pareto
from eval.results.runs import Run, condition_title, show_setting

PLACE = 20
# What methods must have in common to be compared.
TRAINED_ALIKE = ("actor_model", "max_steps", "kl_coeff", "actor_learning_rate", "max_new_tokens")


def make(report: Report) -> Section:
    notes = find_notes(report.runs, report.objectives)
    pictures = [draw(report, condition, notes) for condition in report.conditions]
    in_markdown: list[Block] = [Text([note], only=MARKDOWN) for note in notes]
    return Section("The trade-off", "Trade-off", [*pictures, *in_markdown])


def find_notes(runs: list[Run], objectives: list[str]) -> list[str]:
    """What a reader of the picture has to know of these runs."""
    notes = []
    if len(objectives) == 1:
        notes.append(f"There is one objective, {objectives[0]}: the plot shows it against the KL divergence.")
    if len(objectives) > MOST_OBJECTIVES:
        notes.append(f"Of {len(objectives)} objectives the plot shows the first {MOST_OBJECTIVES}, pair by pair.")
    trained = [run.args for run in runs if "algorithm" in run.args]
    if unlike := [
        key for key in TRAINED_ALIKE if len({show_setting(args[key]) for args in trained if key in args}) > 1
    ]:
        notes.append(f"The policies were not all trained alike: {', '.join(unlike)} differ (see Settings).")
    if len({frozenset(row["source"] for row in run.evaluation["rows"]) for run in runs}) > 1:
        notes.append("The runs were not all evaluated on the same prompts: compare their means with care.")
    return notes


def draw(report: Report, condition: str, notes: list[str]) -> Picture:
    """The plane of one condition."""
    title, file = condition_title(condition), report.file_of("pareto", condition)
    alternative = "The policies in the plane of the objectives" + (f", {title}" if report.several_conditions else "")
    if condition == report.conditions[0]:
        plot_pareto(
            [group for group in report.numbers.groups if group.name.condition == condition], report.folder / file
        )
        return Picture(file, alternative, [caption_of_places(report, title, notes)])
    plot_moves(report.numbers.groups, condition, report.folder / file)
    return Picture(file, alternative, [caption_of_moves(condition_title(report.conditions[0]), title)])


def caption_of_places(report: Report, title: str, notes: list[str]) -> str:
    means = "means over seeds, with the seeds as faint dots, or single policies with 95% intervals over prompts"
    caption = means if report.several_seeds else "means over the test prompts with 95% intervals"
    caption = f"{title}: {caption}" if report.several_conditions else caption
    if len(report.objectives) > 1:
        caption += "; up and to the right is better"
    caption = f"{caption[0].upper()}{caption[1:]}."
    if any(report.numbers.front_quality.values()):
        caption += f" {caption_of_fronts(report.objectives)}"
    return " ".join([caption, *notes])


def caption_of_fronts(objectives: list[str]) -> str:
    if len(objectives) < 3:
        return f"Lines join the policies of one method across preferences; a number is the weight of {objectives[0]}."
    lines = "Lines join policies of one method whose preferences are neighbors; " if len(objectives) == 3 else ""
    text = f"{lines}numbers are the weights of {', '.join(objectives[:-1])} and {objectives[-1]}."
    return f"{text[0].upper()}{text[1:]}"


def caption_of_moves(first: str, second: str) -> str:
    return (
        f"From {first} to {second}: each arrow starts where a method ends up under the first condition (filled) and"
        " points to where it ends up under the second (hollow). A method that does not care about the scales of the"
        " scores does not move."
    )
