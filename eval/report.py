"""Gather the evaluations of a preset into a report: tables, pictures, a page to show, a file to compute with.

    python eval/report.py --input_dir output/tiny

reads eval/*.json and policies/<run>/{metrics.jsonl,args.json} and writes report/ beside them: report.md,
report.html (one self-contained file), results.json, table1.csv, front.csv, table1.png, pareto.png,
training_curves.png and conflict.png; the last two where training left metrics for them.
"""

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from eval.report_conflict import conflict_figures, find_conflict, find_pairs, plot_conflict
from eval.report_plots import plot_pareto, plot_table, plot_training_curves, run_style
from eval.report_samples import choose_samples, read_labels
from eval.report_tables import build_table, format_number, front_csv, table_csv
from eval.runs import Front, Run, find_fronts, load_runs, objective_names
from utils.arguments import Parser, positive_int
from utils.errors import UserError, run_main
from utils.output import check_writable, finished_directory, write_json, write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"
IMAGES = ("pareto.png", "table1.png", "training_curves.png", "conflict.png")


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


def results(runs: list[Run]) -> dict[str, Any]:
    """The content of results.json: intervals are half-widths, ratios percent; 'gold' and 'conflict' where computed."""
    table, pairs = {}, find_pairs(runs)
    for run in runs:
        conflict = conflict_figures(run, pairs)
        table[run.name.text] = {
            "algorithm": run.algorithm,
            "objectives": run.objectives,
            "harmless_ratio": run.evaluation.get("harmless_ratio"),
            "average": run.evaluation["average"],
            "kl": run.evaluation.get("kl"),
            **({"gold": run.gold} if run.gold else {}),
            **({"conflict": conflict} if conflict else {}),
            "seed": run.seed,
        }
    return {"runs": table}


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


def page_facts(runs: list[Run], fronts: list[Front], preset: str) -> dict[str, Any]:
    """The few numbers and notes around the pictures."""
    names = objective_names(run.evaluation for run in runs)
    counts = {len(run.evaluation["rows"]) for run in runs}
    prompts = {frozenset(row["source"] for row in run.evaluation["rows"]) for run in runs}
    notes = []
    if len(names) == 1:
        notes.append(f"There is one objective, {names[0]}: the plot shows it against the KL divergence.")
    if len(names) > 2:
        notes.append(f"Of {len(names)} objectives the plot shows the first two, {names[0]} and {names[1]}.")
    if len(prompts) > 1:
        notes.append("The runs were not all evaluated on the same prompts: compare their means with care.")
    highest = max(run.evaluation["average"] for run in runs)
    return {
        "preset": preset,
        "objectives": names,
        "prompt_count": "–".join(str(count) for count in sorted({min(counts), max(counts)})),
        "highest_average": highest,
        # Every run whose average prints alike: the report decides no tie.
        "highest_runs": [r.name.label for r in runs if round(r.evaluation["average"], 2) == round(highest, 2)],
        "fronts": fronts,
        "notes": notes,
        "has_gold": any(run.gold for run in runs),
    }


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def printable(text: str) -> str:
    """Text of a model without control characters, which no page format allows; line breaks and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)


def markdown_text(text: str) -> Markup:
    """Text of a model as one inert line of markdown: no emphasis, link, html or table cell in it."""
    inert = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", str(escape(printable(text))))
    return Markup("<br>".join(line.strip() for line in inert.splitlines() if line.strip()))


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


def write_report(runs: list[Run], labels_file: Path, sample_count: int, preset: str, output_dir: Path) -> None:
    """All files of the report into `output_dir`."""
    fronts, table = find_fronts(runs), build_table(runs)
    write_json(output_dir / "results.json", results(runs))
    write_text(output_dir / "table1.csv", table_csv(runs))
    write_text(output_dir / "front.csv", front_csv(runs, fronts))
    plot_pareto(runs, fronts, output_dir / "pareto.png")
    plot_table(table, output_dir / "table1.png")
    has_curves = plot_training_curves(runs, output_dir / "training_curves.png")
    conflict = find_conflict(runs)
    if conflict:
        plot_conflict(conflict, runs, output_dir / "conflict.png")
    page = {
        **page_facts(runs, fronts, preset),
        "runs": runs,
        "table": table,
        "has_curves": has_curves,
        "conflict": conflict,
        "samples": choose_samples(runs, read_labels(labels_file), sample_count),
        "settings": split_settings(runs),
        "colors": {run.name.text: run_style(run.name)[0] for run in runs},
    }
    images = {name: data_uri(output_dir / name) for name in IMAGES if (output_dir / name).is_file()}
    write_text(output_dir / "report.html", render("report.html.j2", images=images, **page))
    write_text(output_dir / "report.md", render("report.md.j2", **page))


def main() -> None:
    args = parse_args()
    root = Path(args.input_dir)
    runs = load_runs(root)
    labels_file = Path(args.labels or root / "data" / "prompts_test.jsonl")
    if args.labels and not labels_file.is_file():
        raise UserError(f"--labels {args.labels}: no such file")
    output_dir = Path(args.output_dir or root / "report")
    check_writable(output_dir.parent)
    with finished_directory(output_dir) as folder:
        write_report(runs, labels_file, args.samples, root.resolve().name, folder)
    print(f"report of {len(runs)} runs: {output_dir / 'report.html'}", flush=True)


if __name__ == "__main__":
    run_main(main)
