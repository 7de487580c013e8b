"""How good the fronts are: hypervolume, spacing, dominated points."""

from eval.reporting.blocks import Block, Break, Figures, Report, Section, Text, Words
from eval.reporting.results import Numbers
from eval.reporting.tables import KIND_TITLES, Cell, Column, Heading, Table, format_number, interval_cell
from eval.results.methods import family_title, show_weight

PLACE = 40
TITLES = {"hypervolume": "hypervolume", "spacing": "spacing", "dominated_share": "dominated, %"}


def make(report: Report) -> Section | None:
    tables = quality_tables(report.numbers)
    if not tables:
        return None
    blocks: list[Block] = []
    for title, table in tables:
        blocks += [*report.headed(title), Figures(table, "method", dense=True)]
    return Section("Front quality", "Fronts", [*blocks, Text(explanation(report.numbers), note=True)])


def quality_tables(numbers: Numbers) -> list[tuple[str, Table]]:
    """[(condition, table)]: hypervolume, spacing and dominated share of the fronts, by kind of score."""
    kinds = [kind for kind, entries in numbers.front_quality.items() if entries]
    columns = [Column((name,), KIND_TITLES[kind], TITLES[name], ranked=False) for kind in kinds for name in TITLES]
    columns = [Column(("weights",), "front", "weights"), *columns]
    entries = {
        (entry["condition"], entry["front"], kind): entry for kind in kinds for entry in numbers.front_quality[kind]
    }
    tables: dict[str, list] = {}
    for condition, family in dict.fromkeys(key[:2] for key in entries):
        found = [entries.get((condition, family, kind)) for kind in kinds]
        weights = next(entry["weights"] for entry in found if entry)
        cells = [Cell(", ".join(map(show_weight, weights)))]
        for entry in found:
            share = entry and entry["dominated_share"]
            cells.append(interval_cell(entry and entry["hypervolume"], small=True))
            cells += [interval_cell(entry and entry["spacing"]), interval_cell(share, 0, 100)]
        tables.setdefault(condition, []).append((Heading(family_title(family), family), cells))
    return [(condition, Table(columns, rows)) for condition, rows in tables.items()]


def explanation(numbers: Numbers) -> Words:
    points = [
        f" ({', '.join(f'{name} {format_number(value, 2)}' for name, value in point.items())} in {kind} scores)"
        for kind, point in numbers.reference_points.items()
    ]
    return [
        "With 95% bootstrap intervals. Hypervolume: what the front dominates, above the reference point",
        f"{','.join(points)}; more is better.",
        Break(),
        "Spacing: how unevenly the points lie, 0 is even. Dominated: share of the points that a policy of another"
        " method dominates.",
        Break(),
        "Fronts are compared on the weights they all have.",
    ]
