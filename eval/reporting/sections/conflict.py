"""How much the objectives' gradients were in conflict."""

from eval.reporting.blocks import MARKDOWN, Block, Picture, Report, Section, Text, long_figures
from eval.reporting.conflict import find_conflict, plot_conflict

PLACE = 100


def make(report: Report) -> Section | None:
    conflict = find_conflict(report.groups)
    if conflict is None:
        return None
    plot_conflict(conflict, report.numbers.groups, report.folder / "conflict.png")
    picture = Picture("conflict.png", "How much the objectives conflict", [conflict.caption])
    caption, note = Text([conflict.caption], only=MARKDOWN), Text([conflict.table_note], note=True)
    blocks: list[Block] = [picture, caption, long_figures(conflict.table), note]
    return Section("How much the objectives conflict", "Conflict", blocks)
