"""Score responses with reward models, cost models, functions and gold scores: one json file a run.

    python eval/score.py --responses output/tiny/eval/responses/*.jsonl \
        --reward_model helpfulness=output/tiny/reward/helpfulness \
        --cost_model harmlessness=output/tiny/cost/harmlessness \
        --gold utils.safe_rlhf_mini:gold_scores --output_dir output/tiny/eval

Without flags for objectives they are those that the policies were trained with: of policies/<run>/args.json beside the
output folder.

An objective's value is higher-is-better everywhere: a reward as the training stage sees it, a cost with its
sign changed, a function's value as it is. Every model reads the text of the dialogue through its own tokenizer and
is asked at the last token of the response; of a dialogue with more tokens than it has positions it reads the end.
Intervals are half-widths of the normal 95% interval over prompts, 1.96 s / sqrt(n). Where a function does not judge a
response (None), its score is null; means and intervals are over what is judged, and 'judged' says how many that is
where it is not all. Objectives that share a model are scored in one pass of it. With --explain the same pass says
what the attributes behind a gated score contributed to it: 'explanations' of a row and, of all attributes, of the run.

Judges (--judge, --judge_model) say of every response whether they pass it: 'verdicts' of a row, and under 'judges' the
shares that pass, with 'all' for all of them together. With --tasks each judge is asked of its tasks' responses alone,
and 'tasks' has every figure by task.

Models score what they have not scored yet: scores of the same responses by the same model are kept, those of a run that
was killed, too. Their explanations stay with them; where --explain asks for more than there is, they are scored again.
"""

import argparse
import gc
import hashlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from eval.results.explanations import (
    add_explain_argument,
    explain,
    find_explanation,
    note_unexplained,
    shown_in,
    shown_of,
    suffices,
)
from eval.results.grading import check_values, grade, load_gold, score_gold, summarize_judged
from eval.results.partial import PartialFile, model_identity
from eval.results.rows import FIELDS, Row, read_rows
from eval.results.runs import find_args, read_json
from eval.results.trained_objectives import trained_objectives
from eval.results.verdicts import judge_rows, loaded_judges, summarize_tasks, summarize_verdicts, tasks_of, try_judges
from utils.cli.arguments import Parser, add_loading_arguments, check_output_file
from utils.cli.types import positive_int
from utils.models.configs import DTYPES, allow
from utils.output.files import check_writable, write_json
from utils.output.metrics import Progress
from utils.process.distributed import device
from utils.process.errors import UserError, run_main
from utils.scoring.judges import add_judge_arguments, judges_of
from utils.scoring.objectives import Objective, add_score_arguments, are_given, by_source, named_objectives
from utils.scoring.scorers import ScoredRows, load_row_scorer
from utils.scoring.tasks import Task, add_tasks_argument

ENTRIES = ("objective", "scorer", "values", "truncated", "explanation")  # of a run's scores by one scorer


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Score responses with reward and cost models and gold scores")
    parser.add_argument(
        "--responses",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="files of eval/generate.py; the run is named after the file",
    )
    add_score_arguments(parser)
    parser.add_argument(
        "--gold",
        metavar="MODULE:FUNCTION",
        help="(prompts, responses) -> {objective: values, higher is better}, graded beside the models",
    )
    add_explain_argument(parser)
    add_judge_arguments(parser)
    add_tasks_argument(parser, "tables by task, and judges asked of their tasks alone")
    parser.add_argument("--output_dir", required=True, help="results go to <output_dir>/<run>.json")
    parser.add_argument("--batch_size", type=positive_int, default=64, help="dialogues at once")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="precision of the models")
    add_loading_arguments(parser)
    args = parser.parse_args()
    allow(args)
    return args


def objectives_of(args: argparse.Namespace) -> list[Objective]:
    """Those of the command line, else those that the policies were trained with.

    Raises:
        UserError: see `named_objectives` and `trained_objectives`.
    """
    if are_given(args):
        return named_objectives(args)
    return trained_objectives(args, Path(args.output_dir).parent, [Path(file).stem for file in args.responses])


def read_responses(files: list[str]) -> dict[str, list[Row]]:
    """{run: its rows}.

    Raises:
        UserError: a file that is missing, empty, given twice, or not one of eval/generate.py.
    """
    runs: dict[str, list[Row]] = {}
    for file in map(Path, files):
        if file.stem in runs:
            raise UserError(f"--responses {file}: the run {file.stem} is given twice")
        runs[file.stem] = read_rows(file, "--responses", FIELDS)
    return runs


class Scores:
    """The scores of one run's responses, in its result and, until that is written, in a partial file.

    Attributes:
        kept: {'objective', 'scorer', 'values', 'truncated', 'explanation'} of these very responses, the last of them
            None where there is none; of an objective there may be several.
    """

    def __init__(self, responses: Path, result: Path):
        self.responses = hashlib.sha256(responses.read_bytes()).hexdigest()
        self.partial = PartialFile(result, {"responses": self.responses, "entries": ENTRIES})
        self.kept = [*finished_scores(result, self.responses), *self.partial.parts]

    def find(self, objective: str, scorer: dict[str, Any], shown: int = 0) -> dict[str, Any] | None:
        """The entry by the same scorer that explains the most, if there is one with `shown` contributions a row."""
        entries = (e for e in self.kept if e["objective"] == objective and e["scorer"] == scorer)
        found = max(entries, key=lambda entry: shown_in(entry["explanation"]), default=None)
        return found if found and suffices(found["explanation"], shown) else None

    def add(self, objective: str, scorer: dict[str, Any], found: ScoredRows, shown: int) -> None:
        """Keep the scores of an objective, with `shown` contributions a row."""
        explanation = explain(found.contributions[objective], shown) if shown else None
        entry = (objective, scorer, found.values[objective], sum(found.truncated), explanation)
        entry = dict(zip(ENTRIES, entry, strict=True))
        self.partial.append(entry)
        self.kept.append(entry)

    def record(self, scorers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What the result says about where its scores come from; `finished_scores` reads it.

        'truncated' is the number of dialogues that an objective's model had to read without their beginning.
        """
        truncated = {name: self.find(name, scorer)["truncated"] for name, scorer in scorers.items()}
        return {"responses": self.responses, "objectives": scorers, "truncated": truncated}

    def explanations(self, scorers: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
        """{objective: {attribute: mean and interval of what it contributes}}, of those that have an explanation."""
        found = {name: self.find(name, scorer)["explanation"] for name, scorer in scorers.items()}
        return {name: explanation["attributes"] for name, explanation in found.items() if explanation}


def finished_scores(result: Path, responses: str) -> list[dict[str, Any]]:
    """The entries `Scores.kept` of an older result, if it is of the responses with this sha256 and has them whole."""
    try:
        older = read_json(result) if result.is_file() else {}
    except UserError:  # it is about to be written again
        older = {}
    try:
        record = older["scored"]
        entries = [
            {
                "objective": name,
                "scorer": scorer,
                "values": values_of(older, name),
                "truncated": int(record["truncated"][name]),
                "explanation": find_explanation(older, name),
            }
            for name, scorer in record["objectives"].items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError):  # the same
        return []
    return entries if record["responses"] == responses else []


def values_of(older: dict[str, Any], objective: str) -> list[float | None]:
    """An objective's column of a result; raises what its shape causes."""
    column = [row["scores"][objective] for row in older["rows"]]
    return [None if value is None else float(value) for value in column]


def scorer_of(objective: Objective, args: argparse.Namespace) -> dict[str, Any]:
    """All that decides an objective's scores but the responses; JSON."""
    if objective.is_function:
        return {"kind": objective.kind, "function": objective.path, "facts": objective.facts()}
    return {
        "kind": objective.kind,
        "model": model_identity(objective.path, objective.flag),
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "device": device().type,
        **({} if objective.label is None else {"label": objective.label}),
        **({} if objective.template is None else {"template": objective.template_facts()}),
    }


def score_group(
    group: list[Objective], runs: dict[str, list[Row]], scores: dict[str, Scores], args: argparse.Namespace
) -> None:
    """Complete the `scores` of objectives that are of one source; what scores them is loaded if a run lacks some.

    Raises:
        UserError: see `score_runs`.
    """
    scorers = {objective.name: scorer_of(objective, args) for objective in group}
    shown = {objective.name: shown_of(objective, args.explain) for objective in group}

    def lacks(run: str, name: str) -> bool:
        return scores[run].find(name, scorers[name], shown[name]) is None

    lacking = {run: [objective for objective in group if lacks(run, objective.name)] for run in runs}
    for objective in group:
        if found := sum(objective not in missing for missing in lacking.values()):
            print(f"score {objective.name}: {found} of {len(runs)} runs have scores", flush=True)
    asked = {run: rows for run, rows in runs.items() if lacking[run]}
    wanted = [objective for objective in group if any(objective in missing for missing in lacking.values())]
    if asked:
        for run, found in score_runs(wanted, asked, args, done_before=len(runs) - len(asked)):
            for name in (objective.name for objective in lacking[run]):
                scores[run].add(name, scorers[name], found, shown[name])


def score_runs(
    group: list[Objective], runs: dict[str, list[Row]], args: argparse.Namespace, done_before: int
) -> Iterator[tuple[str, ScoredRows]]:
    """Values of objectives of one source, run after run.

    Raises:
        UserError: a function that fails, or a score that is not a number.
    """
    scorer = load_row_scorer(group, DTYPES[args.dtype], args.batch_size, bool(args.explain))
    total, names = done_before + len(runs), ", ".join(objective.name for objective in group)
    progress = Progress(total, f"score {names}", max(1, total // 5), done_before)
    for number, (run, rows) in enumerate(runs.items(), start=done_before + 1):
        found = scorer(rows)
        for objective in group:
            check_values(rows, objective.name, found.values[objective.name], objective.flag)
        progress.update(number, **means_of(found.values))
        yield run, found


def means_of(values: dict[str, list[float | None]]) -> dict[str, float]:
    """What a line of progress says of {objective: its values}; nothing of one that judges none of them."""
    found = {name: entry["mean"] for name, column in values.items() if (entry := summarize_judged(column))}
    return {"mean" if len(values) == 1 else f"mean {name}": mean for name, mean in found.items()}


def fill_rows(run: str, rows: list[Row], entries: dict[str, dict[str, Any]], most: int | None) -> None:
    """Write {objective: its entry of `Scores`} into `scores` and `explanations` of every row; say what was not read, or
    not judged.

    Args:
        most: contributions a row, where not all that are kept.

    Raises:
        UserError: no objective judges any of the responses.
    """
    for name, entry in entries.items():
        for row, value in zip(rows, entry["values"], strict=True):
            row.setdefault("scores", {})[name] = value
        if explanation := entry["explanation"]:
            for row, contributions in zip(rows, explanation["rows"], strict=True):
                row.setdefault("explanations", {})[name] = contributions[:most]
        if entry["truncated"]:
            print(f"score {name}: truncated {entry['truncated']} of {len(rows)} dialogues of {run}", flush=True)
        if missing := entry["values"].count(None):
            print(f"score {name}: judged {len(rows) - missing} of {len(rows)} responses of {run}", flush=True)
    if all(value is None for row in rows for value in row["scores"].values()):
        raise UserError(f"--responses {run}: no objective judges any of its responses")


def summarize_scores(rows: list[Row], part: str, cost_name: str | None) -> dict[str, Any]:
    """Statistics of `scores` or `gold`: every objective, their average, the percentage of harmless responses.

    All are over the responses that an objective judges. One that judges none has no entry, and there is no average
    then (None): it would be one over other objectives than that of other runs. Harmless is a negative cost, that is a
    positive value of the objective `cost_name`; None without such a cost.
    """
    values = {name: [row[part][name] for row in rows] for name in rows[0][part]}
    objectives = {name: entry for name, column in values.items() if (entry := summarize_judged(column))}
    harmless = [value > 0 for value in values.get(cost_name, []) if value is not None]
    means = [entry["mean"] for entry in objectives.values()]
    return {
        "objectives": objectives,
        "harmless_ratio": 100 * statistics.fmean(harmless) if harmless else None,
        "average": statistics.fmean(means) if len(means) == len(values) else None,
    }


def evaluation(
    run: str,
    rows: list[Row],
    objectives: list[Objective],
    args: dict[str, Any],
    scored: dict[str, Any],
    explanations: dict[str, Any],
    tasks: Sequence[Task] = (),
) -> dict[str, Any]:
    """The content of <run>.json.

    Args:
        args: the run's settings.
        scored: a `Scores.record`.
        explanations: see `Scores.explanations`.
        tasks: of the rows, if any are told.
    """
    cost_name = next((objective.name for objective in objectives if objective.zero_divides), None)
    return {
        "run": run,
        "args": args,
        "scored": scored,
        **summarize_scores(rows, "scores", cost_name),
        "kl": statistics.fmean(row["kl"] for row in rows),
        "response_length": statistics.fmean(row["length"] for row in rows),
        **({"gold": summarize_scores(rows, "gold", cost_name)} if "gold" in rows[0] else {}),
        **({"explanations": explanations} if explanations else {}),
        **({"judges": judges} if (judges := summarize_verdicts(rows)) else {}),
        **({"tasks": summarize_tasks(rows, tasks)} if tasks else {}),
        "rows": rows,
    }


def main() -> None:
    args = parse_args()
    objectives = objectives_of(args)
    gold = load_gold(args.gold) if args.gold else None
    runs = read_responses(args.responses)
    judges = judges_of(args, [objective.name for objective in objectives])
    tasks = tasks_of(args, judges, runs)
    note_unexplained(objectives, args.explain)
    sample = next(iter(runs.values()))[:1]  # what is wrong with a function is known before models load
    for objective in objectives:
        if objective.is_function:
            load_row_scorer([objective])(sample)
    if gold:
        grade(gold, args.gold, sample)
    try_judges(judges, tasks, runs)
    for run in runs:
        check_output_file(Path(args.output_dir) / f"{run}.json")
    output_dir = check_writable(args.output_dir)
    scores = {Path(file).stem: Scores(Path(file), output_dir / f"{Path(file).stem}.json") for file in args.responses}
    for group in by_source(objectives):
        score_group(group, runs, scores, args)
    scorers = {objective.name: scorer_of(objective, args) for objective in objectives}
    for run, rows in runs.items():
        entries = {name: scores[run].find(name, scorer) for name, scorer in scorers.items()}
        fill_rows(run, rows, entries, args.explain)
    if gold:
        score_gold(gold, args.gold, runs)
    loaded = loaded_judges(judges, args)
    for rows in runs.values():
        judge_rows(rows, loaded, tasks)
    for run, rows in runs.items():
        settings, file = find_args(output_dir.parent, run), output_dir / f"{run}.json"
        record, explanations = scores[run].record(scorers), scores[run].explanations(scorers)
        write_json(file, evaluation(run, rows, objectives, settings, record, explanations, tasks))
        scores[run].partial.remove()
        print(f"{run}: {file}", flush=True)


if __name__ == "__main__":
    run_main(main)
