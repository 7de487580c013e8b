"""Gather the evaluations of a preset into a report: tables, pictures, a page to show, a file to compute with.

    python eval/report.py --input_dir output/tiny

reads eval/*.json, eval/judge/*.json and policies/<run>/{metrics.jsonl,args.json} and writes report/ beside them:
report.md, report.html (one self-contained file), results.json, csv files, and the pictures: table1.png, pareto.png
and training_curves.png (and one of each for every further condition), explanations.png (likewise), weights.png,
conflict.png, exploitation.png, judges.png and judge.png, where there are figures for them.
"""

import base64
import gc
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jinja2 import FileSystemLoader

from eval.reporting.blocks import Report, environment
from eval.reporting.plots import DPI, WIDTH
from eval.reporting.results import compute_numbers, write_results
from eval.reporting.sections import make_sections
from eval.reporting.sections.judge import load_judgements
from eval.reporting.sections.samples import read_labels
from eval.reporting.tables import count_range
from eval.results.runs import condition_title, load_runs
from utils.cli.arguments import Parser
from utils.cli.types import positive_int
from utils.output.files import check_writable, finished_directory, write_text
from utils.process.errors import UserError, run_main

PAGE_WIDTH = 1132  # CSS pixels of a picture of full width
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


def page_facts(report: Report) -> dict[str, Any]:
    """The few numbers at the head of the page."""
    prompts = {frozenset(row["source"] for row in run.evaluation["rows"]) for run in report.runs}
    return {
        "preset": report.preset,
        "objectives": report.objectives,
        "prompt_count": count_range(len(found) for found in prompts),
        "seed_count": count_range(len(group.runs) for group in report.groups),
        "several_seeds": report.several_seeds,
        "policy_count": len(report.groups),
        "conditions": [condition_title(condition) for condition in report.conditions],
    }


def load_picture(path: Path) -> dict[str, Any]:
    """{'uri', 'width'}: a png for the page, and the CSS pixels at which its text is as large as in all others."""
    content = path.read_bytes()
    pixels = int.from_bytes(content[16:20], "big")  # the width in a png's header
    uri = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return {"uri": uri, "width": round(PAGE_WIDTH * pixels / (DPI * WIDTH))}


def write_report(report: Report) -> None:
    """All files of the report into its folder."""
    write_results(report.numbers, report.folder)
    page = {
        **page_facts(report),
        "sections": make_sections(report),
        "images": {path.name: load_picture(path) for path in report.folder.glob("*.png")},
    }
    templates = environment(loader=FileSystemLoader(TEMPLATES))
    for name in ("report.html", "report.md"):
        write_text(report.folder / name, templates.get_template(f"{name}.j2").render(**page))


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
        preset = root.resolve().name
        write_report(Report(compute_numbers(runs), judgements, labels, args.samples, preset, folder))
    print(f"report of {len(runs)} runs: {output_dir / 'report.html'}", flush=True)


if __name__ == "__main__":
    run_main(main)
