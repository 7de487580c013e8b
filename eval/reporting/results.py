"""The report's numbers: everything that is computed from the runs once, and the json and csv files that hold it."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reporting.comparisons import compare_runs
from eval.reporting.conflict import conflict_figures, find_pairs
from eval.reporting.front_quality import ScoreDraws, draw_scores, front_quality, row_hypervolumes
from eval.reporting.seeds import RunGroup, group_runs, reduce_figures
from eval.reporting.tables import front_csv, table_csv, to_csv
from eval.results.methods import show_weight
from eval.results.runs import Front, Run, condition_title, find_fronts
from utils.output.files import write_json, write_text

KINDS = ("model", "gold")
QUALITIES = ("hypervolume", "spacing", "dominated_share")


@dataclass(frozen=True)
class Numbers:
    """What tables, pictures and files are made of.

    Attributes:
        runs: every seed; groups: seeds taken together; fronts: of every seed.
        draws: {'model' or 'gold': its scores resampled}, without a kind that is missing.
        front_quality: {kind: entries of `front_quality`}.
        hypervolumes: {kind: {group: interval}} of single rows.
        comparisons: entries of `compare_runs`.
    """

    runs: list[Run]
    groups: list[RunGroup]
    fronts: list[Front]
    draws: dict[str, ScoreDraws]
    front_quality: dict[str, list[dict[str, Any]]]
    hypervolumes: dict[str, dict[str, dict[str, float]]]
    comparisons: list[dict[str, Any]]

    @property
    def reference_points(self) -> dict[str, dict[str, float]]:
        """{kind: {objective: value}}, where hypervolumes start."""
        return {
            kind: dict(zip(draws.objectives, map(float, draws.reference), strict=True))
            for kind, draws in self.draws.items()
        }


def compute_numbers(runs: list[Run]) -> Numbers:
    draws = {kind: found for kind in KINDS if (found := draw_scores(runs, kind))}
    return Numbers(
        runs=runs,
        groups=group_runs(runs),
        fronts=find_fronts(runs),
        draws=draws,
        front_quality={kind: front_quality(found) for kind, found in draws.items()},
        hypervolumes={kind: row_hypervolumes(found) for kind, found in draws.items()},
        comparisons=compare_runs(draws["model"], draws.get("gold")) if "model" in draws else [],
    )


def results(numbers: Numbers) -> dict[str, Any]:
    """The content of results.json.

    'runs' has every seed (intervals are half-widths, ratios percent; 'gold', 'hypervolume', 'conflict', 'explanations',
    'judges' and 'tasks' where computed), 'groups' the means and sample standard deviations over seeds.
    """
    pairs = find_pairs(numbers.runs)
    return {
        "runs": {run.name.text: run_entry(run, numbers, conflict_figures(run, pairs)) for run in numbers.runs},
        "groups": {group.name.text: group_entry(group, numbers) for group in numbers.groups},
        "reference_point": numbers.reference_points,
        "fronts": numbers.front_quality,
        "comparisons": numbers.comparisons,
    }


def run_entry(run: Run, numbers: Numbers, conflict: dict[str, Any] | None) -> dict[str, Any]:
    """One seed's figures."""
    volumes = {
        kind: {"hypervolume": float(draws.hypervolume([run])[0])}
        for kind, draws in numbers.draws.items()
        if run.name.text in draws.means
    }
    return {
        "algorithm": run.algorithm,
        "objectives": run.objectives,
        "harmless_ratio": run.evaluation.get("harmless_ratio"),
        "average": run.evaluation.get("average"),
        "kl": run.evaluation.get("kl"),
        **volumes.get("model", {}),
        **({"gold": run.gold | volumes.get("gold", {})} if run.gold else {}),
        **({"conflict": conflict} if conflict else {}),
        **{part: found for part in ("explanations", "judges", "tasks") if (found := run.evaluation.get(part))},
        "seed": run.seed,
    }


def group_entry(group: RunGroup, numbers: Numbers) -> dict[str, Any]:
    """Means over seeds; 'sd' is None with one seed."""
    return {
        "condition": condition_title(group.name.condition),
        "seeds": group.seeds,
        "n": len(group.runs),
        "mean": reduce_figures(group.runs, statistics.fmean),
        "sd": group.evaluation.get("sd"),
        "hypervolume": {
            kind: found[group.name.text] for kind, found in numbers.hypervolumes.items() if group.name.text in found
        },
    }


def front_quality_csv(numbers: Numbers) -> str:
    """One line a kind of score and front."""
    header = ["scores", "condition", "front", "weights", "points", "seeds"]
    header += [f"{quality}{suffix}" for quality in QUALITIES for suffix in ("", "_low", "_high")]
    rows = []
    for kind, entries in numbers.front_quality.items():
        for entry in entries:
            row = {key: entry[key] for key in ("condition", "front", "points")}
            row |= {
                "scores": kind,
                "weights": " ".join(map(show_weight, entry["weights"])),
                "seeds": len(entry["seeds"]),
            }
            for quality in QUALITIES:
                found = entry[quality] or {}
                row |= {
                    quality: found.get("mean"),
                    f"{quality}_low": found.get("low"),
                    f"{quality}_high": found.get("high"),
                }
            rows.append(row)
    return to_csv(header, rows)


def comparisons_csv(numbers: Numbers) -> str:
    """One line a condition, pair and metric; the pairs of judged responses where some difference is not on all."""
    header = ["condition", "method", "other", "metric", "difference", "low", "high", "seeds", "interval"]
    header += ["pairs"] if any("pairs" in entry for entry in numbers.comparisons) else []
    return to_csv(header, numbers.comparisons)


def write_results(numbers: Numbers, folder: Path) -> None:
    """results.json, table1.csv, front.csv, front_quality.csv and comparisons.csv."""
    write_json(folder / "results.json", results(numbers))
    write_text(folder / "table1.csv", table_csv(numbers.groups))
    write_text(folder / "front.csv", front_csv(numbers.runs, numbers.fronts))
    write_text(folder / "front_quality.csv", front_quality_csv(numbers))
    write_text(folder / "comparisons.csv", comparisons_csv(numbers))
