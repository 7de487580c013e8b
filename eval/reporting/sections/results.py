"""The table of results, one a condition."""

from eval.reporting.blocks import MARKDOWN, PAGE, Block, Break, Figures, Mark, Picture, Report, Section, Text, Words
from eval.reporting.plots import plot_table
from eval.reporting.tables import Table, count_range
from eval.reporting.units import harmless_title, share_a_unit
from eval.results.runs import condition_title, count_judged

PLACE = 30


def make(report: Report) -> Section:
    blocks: list[Block] = []
    for condition, (title, table) in zip(report.conditions, report.tables, strict=True):
        file = report.file_of("table1", condition)
        plot_table(table, report.folder / file)
        blocks += [
            *report.headed(title),
            Figures(table, dense=report.several_seeds),
            Text([" ".join([table.spread, *repeated(table, report)])], only=MARKDOWN),
            Text(page_note(table, report), note=True, only=PAGE),
            Picture(file, "The table as a picture", only=MARKDOWN),
        ]
    return Section("Results", "Results", [*blocks, Text(explanation(report), only=MARKDOWN), *judged_note(report)])


def page_note(table: Table, report: Report) -> Words:
    ranked = [f"{table.spread} Best of a column ", Mark("bold", "strong"), ", second ", Mark("underlined", "u")]
    notes = [*repeated(table, report), *averaging(report)]
    return [*ranked, "; KL and length have no better side.", *(f" {text}" for text in notes)]


def judged_note(report: Report) -> list[Block]:
    """How many responses are judged, where an objective does not judge them all."""
    shown = [
        f"{name} {count_range(judged for judged, _ in counts)} of {count_range(total for _, total in counts)}"
        for name, counts in count_judged(report.runs).items()
    ]
    said = f"Not every response is judged: of the responses of a run, {', '.join(shown)}. Figures are over those."
    return [Text([said], note=True)] if shown else []


def repeated(table: Table, report: Report) -> list[str]:
    """Of rows of another condition."""
    first = condition_title(report.conditions[0])
    return [f"Rows marked ({first}) are repeated: this condition changes nothing for them."] if table.references else []


def averaging(report: Report) -> list[str]:
    """Of an average over what cannot be compared."""
    if share_a_unit(report.objectives, report.runs):
        return []
    return ["The average is over objectives in different units, so that it ranks nothing."]


def explanation(report: Report) -> Words:
    harmless = harmless_title(report.runs)
    return [
        "Higher is better in every score; best bold, second underlined.",
        *([" ", Mark(harmless, "em"), ": share of responses with a negative cost."] if harmless else []),
        Break(),
        Mark("average", "em"),
        ": mean of the objectives. ",
        Mark("KL", "em"),
        ": divergence from the reference policy in nats a response; ",
        Mark("length", "em"),
        ": tokens a",
        Break(),
        "response; these two have no better side.",
        *(f" {text}" for text in averaging(report)),
    ]
