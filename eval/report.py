"""Gather the evaluations of a preset into a report: tables, pictures, a page to show, a file to compute with.

    python eval/report.py --input_dir output/tiny

reads eval/*.json, eval/judge/*.json and policies/<run>/{metrics.jsonl,args.json} and writes report/ beside them:
report.md, report.html (one self-contained file), results.json, csv files, and the pictures: table1.png, pareto.png
and training_curves.png (and one of each for every further condition), weights.png, conflict.png, exploitation.png
and judge.png, where there are figures for them.
"""

import base64
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.reporting.conflict import Conflict, find_conflict, plot_conflict
from eval.reporting.curves import plot_training_curves
from eval.reporting.gold import TABLE_NOTE, build_gold_table, plot_exploitation
from eval.reporting.judge import Judgement, find_judgement, load_judgements, plot_judgement
from eval.reporting.plane import MOST_OBJECTIVES, plot_moves, plot_pareto
from eval.reporting.plots import DPI, WIDTH, plot_table, run_style
from eval.reporting.results import Numbers, compute_numbers, write_results
from eval.reporting.samples import choose_samples, read_labels
from eval.reporting.summary import comparison_tables, quality_tables, summarize_report
from eval.reporting.tables import Table, build_tables, format_number
from eval.reporting.weights import plot_weights
from eval.results.runs import Run, find_conditions, load_runs, objective_names
from utils.cli.arguments import Parser, positive_int
from utils.output.files import check_writable, finished_directory, write_text
from utils.process.errors import UserError, run_main
from utils.process.plain_text import markdown_text, printable

PAGE_WIDTH = 1132  # CSS pixels of a picture of full width
# What methods must have in common to be compared.
TRAINED_ALIKE = ("actor_model", "max_steps", "kl_coeff", "actor_learning_rate", "max_new_tokens")
TEMPLATES = Path(__file__).resolve().parent / "reporting" / "templates"


def parse_args() -> Any:
    parser = Parser(description="Collect evaluations into a report (tables, pictures, html, json)")
    parser.add_argument("--input_dir", required=True, help="folder of a preset, with eval/*.json in it")
    parser.add_argument("--output_dir", help="where the report goes; without it, <input_dir>/report")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="jsonl of test prompts with 'risky' and 'category', so that samples of every kind are shown"
        "; without it, <input_dir>/data/prompts_test.jsonl where that exists",
    )
    parser.add_argument("--samples", type=positive_int, default=6, help="prompts shown side by side")
    return parser.parse_args()


def split_settings(runs: list[Run]) -> dict[str, Any]:
    """Training settings for the report: what all aligned policies share, and a table of what differs.

    Runs of other stages (no 'algorithm' among their settings) have other flags and are listed on their own.
    """
    trained = [run for run in runs if "algorithm" in run.args]
    keys = list(dict.fromkeys(key for run in trained for key in run.args if key != "output_dir"))
    shared = [key for key in keys if all(run.args.get(key) == trained[0].args.get(key) for run in trained)]
    differing = [key for key in keys if key not in shared]
    return {
        "shared": {key: show_setting(trained[0].args[key]) for key in shared},
        "differing": differing,
        "rows": [(run, [show_setting(run.args.get(key)) for key in differing]) for run in trained],
        "others": [
            (run, {key: show_setting(value) for key, value in run.args.items()})
            for run in runs
            if run.args and "algorithm" not in run.args
        ],
    }


def show_setting(value: Any) -> str:
    """A setting as a user would type it; nothing for an unset one."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={show_setting(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join("=".join(map(str, item)) if isinstance(item, list) else show_setting(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def page_facts(numbers: Numbers, preset: str) -> dict[str, Any]:
    """The few numbers and notes around the pictures."""
    runs = numbers.runs
    names = objective_names(run.evaluation for run in runs)
    prompts = {frozenset(row["source"] for row in run.evaluation["rows"]) for run in runs}
    notes = []
    if len(names) == 1:
        notes.append(f"There is one objective, {names[0]}: the plot shows it against the KL divergence.")
    if len(names) > MOST_OBJECTIVES:
        notes.append(f"Of {len(names)} objectives the plot shows the first {MOST_OBJECTIVES}, pair by pair.")
    trained = [run.args for run in runs if "algorithm" in run.args]
    if unlike := [
        key for key in TRAINED_ALIKE if len({show_setting(args[key]) for args in trained if key in args}) > 1
    ]:
        notes.append(f"The policies were not all trained alike: {', '.join(unlike)} differ (see Settings).")
    if len(prompts) > 1:
        notes.append("The runs were not all evaluated on the same prompts: compare their means with care.")
    return {
        "preset": preset,
        "objectives": names,
        "prompt_count": count_range(len(found) for found in prompts),
        "seed_count": count_range(len(group.runs) for group in numbers.groups),
        "several_seeds": any(len(group.runs) > 1 for group in numbers.groups),
        "policy_count": len(numbers.groups),
        "notes": notes,
        "has_gold": any(run.gold for run in runs),
    }


def count_range(counts: Iterable[int]) -> str:
    """'256', or '1–5' for counts that differ."""
    found = set(counts)
    return "–".join(str(count) for count in sorted({min(found), max(found)}))


def load_picture(path: Path) -> dict[str, Any]:
    """{'uri', 'width'}: a png for the page, and the CSS pixels at which its text is as large as in all others."""
    content = path.read_bytes()
    pixels = int.from_bytes(content[16:20], "big")  # the width in a png's header
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return {"uri": uri, "width": round(PAGE_WIDTH * pixels / (DPI * WIDTH))}


def render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = markdown_text
    environment.filters["number"] = format_number
    environment.filters["printable"] = printable
    return environment.get_template(template).render(**values)


def file_suffix(conditions: list[str], condition: str) -> str:
    """What a condition adds to the names of its pictures; nothing for the first one."""
    return "" if condition == conditions[0] else "_" + re.sub(r"[^\w.-]", "_", condition)


def draw_conditions(numbers: Numbers, tables: list[tuple[str, Table]], folder: Path) -> list[dict[str, Any]]:
    """The pictures of every condition; [{'title', 'table', 'plane', 'curves', 'table_picture'}] with file names."""
    conditions, sections = find_conditions(numbers.groups), []
    for condition, (title, table) in zip(conditions, tables, strict=True):
        suffix = file_suffix(conditions, condition)
        plane, curves, picture = (f"{stem}{suffix}.png" for stem in ("pareto", "training_curves", "table1"))
        if suffix:
            plot_moves(numbers.groups, condition, folder / plane)
        else:
            plot_pareto([group for group in numbers.groups if group.name.condition == condition], folder / plane)
        plot_table(table, folder / picture)
        drawn = plot_training_curves(numbers.groups, condition, folder / curves)
        section = {"title": title, "table": table, "plane": plane, "table_picture": picture, "is_first": not suffix}
        sections.append({**section, "curves": curves if drawn else ""})
    return sections


def draw_pictures(numbers: Numbers, conflict: Conflict | None, judgement: Judgement | None, folder: Path) -> None:
    """The pictures of all conditions together."""
    plot_weights(numbers.groups, folder / "weights.png")
    plot_exploitation(numbers.groups, folder / "exploitation.png")
    if conflict:
        plot_conflict(conflict, numbers.groups, folder / "conflict.png")
    if judgement:
        plot_judgement(judgement, folder / "judge.png")


def write_report(
    runs: list[Run], judgements: list[dict], labels: dict[str, dict], sample_count: int, preset: str, folder: Path
) -> None:
    """All files of the report into `folder`."""
    numbers = compute_numbers(runs)
    write_results(numbers, folder)
    groups = [
        group for name in find_conditions(numbers.groups) for group in numbers.groups if group.name.condition == name
    ]
    conflict, judgement = find_conflict(groups), find_judgement(judgements)
    sections = draw_conditions(numbers, build_tables(numbers.groups), folder)
    draw_pictures(numbers, conflict, judgement, folder)
    page = {
        **page_facts(numbers, preset),
        "sections": sections,
        "summaries": summarize_report(numbers),
        "reference": numbers.reference_points,
        "quality": quality_tables(numbers),
        "comparisons": comparison_tables(numbers),
        "conflict": conflict,
        "gold_table": build_gold_table(groups),
        "gold_note": TABLE_NOTE,
        "judgement": judgement,
        "samples": choose_samples(runs, labels, sample_count),
        "settings": split_settings(groups),
        "colors": {run.name.text: run_style(run.name)[0] for run in runs},
        "images": {path.name: load_picture(path) for path in folder.glob("*.png")},
    }
    write_text(folder / "report.html", render("report.html.j2", **page))
    write_text(folder / "report.md", render("report.md.j2", **page))


def check_output(folder: Path) -> None:
    """Make sure that writing the report, which replaces a folder as a whole, deletes nothing but an older report.

    Raises:
        UserError: it would, or the folder cannot be written.
    """
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / "report.html").is_file():
        raise UserError(f"--output_dir {folder}: holds something other than a report, which would be deleted")
    check_writable(folder.resolve().parent)


def main() -> None:
    args = parse_args()
    root = Path(args.input_dir)
    runs = load_runs(root)
    labels_file = Path(args.labels or root / "data" / "prompts_test.jsonl")
    if args.labels and not labels_file.is_file():
        raise UserError(f"--labels {args.labels}: no such file")
    labels, judgements = read_labels(labels_file), load_judgements(root)
    output_dir = Path(args.output_dir or root / "report")
    check_output(output_dir)
    with finished_directory(output_dir) as folder:
        write_report(runs, judgements, labels, args.samples, root.resolve().name, folder)
    print(f"report of {len(runs)} runs: {output_dir / 'report.html'}", flush=True)


if __name__ == "__main__":
    run_main(main)
