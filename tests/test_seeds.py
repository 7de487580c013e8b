"""Seeds taken together, and the report of three seeds under two conditions, through the command line."""

import csv
import json
import math
import statistics
from pathlib import Path

import pytest

from eval.reporting.seeds import group_runs
from eval.reporting.tables import build_table, build_tables
from eval.results.runs import find_stand_ins, load_runs, parse_run_name
from tests.evaluations import make_run, noisy_run, write_runs
from tests.helpers import run_script

SCALED = {"score_scale": [["helpfulness", 1.0], ["harmlessness", 4.0]]}


def test_groups_hold_means_and_deviations():
    places = [(1.0, 2.0), (2.0, -1.0), (6.0, 0.5)]
    runs = [
        make_run(f"gapo_p1{suffix}", [place] * 2, gold=[place] * 2, args={"algorithm": "gapo", "seed": seed})
        for (suffix, seed), place in zip((("", 42), ("#43", 43), ("#44", 44)), places, strict=True)
    ]
    alone = make_run("gapo_p1@imbalanced#43", [places[0]] * 2)
    group, single = group_runs([*runs, alone])
    assert group.name.text == "gapo_p1" and group.seeds == [42, 43, 44] and group.args == {"algorithm": "gapo"}
    helpful = [place[0] for place in places]
    averages = [statistics.fmean(place) for place in places]
    assert group.objectives["helpfulness"] == {"mean": pytest.approx(statistics.fmean(helpful))}
    assert group.evaluation["average"] == pytest.approx(statistics.fmean(averages))
    assert group.evaluation["harmless_ratio"] == group.gold["harmless_ratio"] == pytest.approx(200 / 3)
    deviations = group.evaluation["sd"]
    assert deviations["objectives"]["helpfulness"] == pytest.approx(statistics.stdev(helpful))
    assert deviations["gold"]["average"] == deviations["average"] == pytest.approx(statistics.stdev(averages))
    assert deviations["kl"] == 0 and "rows" not in group.evaluation
    assert single.name.text == "gapo_p1@imbalanced" and single.evaluation is alone.evaluation and single.seeds == [43]


def test_figures_that_a_seed_lacks():
    runs = [make_run("mgda", [[1.0, 1.0]] * 2, gold=[[0.0, 0.0]] * 2), make_run("mgda#43", [[2.0, 2.0]] * 2)]
    runs[1].evaluation["harmless_ratio"] = None
    (group,) = group_runs(runs)
    assert group.gold is None and group.evaluation["harmless_ratio"] is None and group.evaluation["average"] == 1.5


def test_curves_are_means_over_the_steps_of_all_seeds():
    logs = [
        {"reward/helpfulness": [(1, 1.0), (2, 3.0), (3, 5.0)], "kl": [(1, 1.0)]},
        {"reward/helpfulness": [(1, 2.0), (2, math.inf)]},
    ]
    runs = [make_run(name, [[0, 0]] * 2, metrics=log) for name, log in zip(("mgda", "mgda#43"), logs, strict=True)]
    (group,) = group_runs(runs)
    assert group.metrics == {"reward/helpfulness": [(1, 1.5), (2, pytest.approx(math.nan, nan_ok=True))]}
    assert group.metrics_sd["reward/helpfulness"][0] == (1, pytest.approx(statistics.stdev([1, 2])))
    (single,) = group_runs(runs[:1])
    assert single.metrics == logs[0] and single.metrics_sd == {}


def test_runs_that_a_condition_does_not_change_stand_in_for_it():
    runs = [make_run(name, [[0, 0]] * 2) for name in ("sft", "ppo_helpfulness", "ppo_harmlessness", "mgda")]
    runs += [make_run("mgda@imbalanced", [[0, 0]] * 2, args=SCALED), make_run("mgda@longer", [[0, 0]] * 2)]
    names = {c: [run.name.text for run in find_stand_ins(runs, c)] for c in ("", "imbalanced", "longer")}
    assert names == {"": [], "imbalanced": ["sft", "ppo_helpfulness"], "longer": ["sft"]}
    own = [*runs, make_run("ppo_helpfulness@imbalanced", [[0, 0]] * 2, args=SCALED)]
    assert [run.name.text for run in find_stand_ins(own, "imbalanced")] == ["sft"]


def test_names_without_condition_or_seed():
    name = parse_run_name("gapo_p1@imbalanced#43")
    assert (name.group, name.method, name.label) == ("gapo_p1@imbalanced", "GAPO p=1", "GAPO p=1 (imbalanced #43)")
    assert parse_run_name("sft").group == parse_run_name("sft#7").group == "sft"


def make_experiment() -> list:
    """Table-1 rows and two fronts on three seeds; harmlessness is scaled in the second condition, GAPO keeps."""
    balanced = {
        "ppo_helpfulness": (3.0, -2.0), "ppo_harmlessness": (-2.0, 3.0), "morlhf_0.5": (1.0, 1.5), "mgda": (1.0, 1.4),
        "gapo_p1": (1.2, 1.5), "p_gapo_0.2": (-0.5, 2.4), "p_gapo_0.8": (2.2, 0.2), "morlhf_0.2": (-0.8, 2.2),
        "morlhf_0.8": (2.0, 0.0),
    }  # fmt: skip
    scaled = {"ppo_harmlessness": (-2.0, 3.0), "morlhf_0.5": (-1.5, 2.8), "mgda": (2.8, -1.5), "gapo_p1": (1.2, 1.5)}
    runs = [noisy_run("sft", (0.5, 0.5), args={"seed": 42})]
    for suffix, seed in (("", 42), ("#43", 43), ("#44", 44)):
        for condition, places, more in (("", balanced, {}), ("@imbalanced", scaled, SCALED)):
            runs += [
                noisy_run(f"{base}{condition}{suffix}", place, args={"algorithm": base, "seed": seed, **more})
                for base, place in places.items()
            ]
    return runs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_runs(tmp_path_factory.mktemp("seeds") / "tiny", make_experiment())
    done = run_script("eval/report.py", ["--input_dir", str(root)])
    assert done.code == 0, done.stderr
    return root / "report"


def test_results_of_seeds_and_conditions(report: Path):
    results = json.loads((report / "results.json").read_text())
    runs, groups = results["runs"], results["groups"]
    assert len(runs) == 1 + 3 * 13 and len(groups) == 1 + 13
    seeds = [runs[f"gapo_p1@imbalanced{suffix}"] for suffix in ("", "#43", "#44")]
    group = groups["gapo_p1@imbalanced"]
    assert group["condition"] == "imbalanced" and group["seeds"] == [42, 43, 44] and group["n"] == 3
    assert group["mean"]["average"] == pytest.approx(statistics.fmean(seed["average"] for seed in seeds))
    golds = [seed["gold"]["objectives"]["harmlessness"]["mean"] for seed in seeds]
    assert group["mean"]["gold"]["objectives"]["harmlessness"] == pytest.approx(statistics.fmean(golds))
    assert group["sd"]["gold"]["objectives"]["harmlessness"] == pytest.approx(statistics.stdev(golds))
    for kind, volumes in (
        ("model", [seed["hypervolume"] for seed in seeds]),
        ("gold", [seed["gold"]["hypervolume"] for seed in seeds]),
    ):
        assert group["hypervolume"][kind]["mean"] == pytest.approx(statistics.fmean(volumes))
        assert group["hypervolume"][kind]["low"] < statistics.fmean(volumes) < group["hypervolume"][kind]["high"]
    assert groups["sft"]["sd"] is None and groups["sft"]["n"] == 1
    experts = [groups[f"ppo_{name}"]["mean"]["objectives"]["helpfulness"] for name in ("helpfulness", "harmlessness")]
    assert results["reference_point"]["model"]["helpfulness"] == pytest.approx(min(experts))
    assert [(front["front"], front["weights"], front["seeds"]) for front in results["fronts"]["gold"]] == [
        ("p_gapo", [0.2, 0.5, 0.8], [42, 43, 44]),
        ("morlhf", [0.2, 0.5, 0.8], [42, 43, 44]),
    ]


def test_csv_of_seeds_and_conditions(report: Path):
    rows = {row["run"]: row for row in csv.DictReader((report / "table1.csv").open())}
    assert len(rows) == 14
    mgda, sft = rows["mgda@imbalanced"], rows["sft"]
    assert (mgda["condition"], mgda["seeds"], sft["condition"], sft["seeds"]) == ("imbalanced", "3", "balanced", "1")
    group = json.loads((report / "results.json").read_text())["groups"]["mgda@imbalanced"]
    assert float(mgda["average"]) == pytest.approx(group["mean"]["average"], abs=1e-6)
    assert float(mgda["average_sd"]) == pytest.approx(group["sd"]["average"], abs=1e-6)
    assert float(mgda["helpfulness_sd"]) > 0 and mgda["helpfulness_ci95"] == sft["helpfulness_sd"] == ""
    assert float(sft["helpfulness_ci95"]) == 0.25
    assert len(list(csv.DictReader((report / "front.csv").open()))) == 2 * 3 * 3
    quality = list(csv.DictReader((report / "front_quality.csv").open()))
    assert [(row["scores"], row["front"], row["weights"], row["seeds"]) for row in quality] == [
        (kind, front, "0.2 0.5 0.8", "3") for kind in ("model", "gold") for front in ("p_gapo", "morlhf")
    ]
    assert all(float(row["hypervolume_low"]) < float(row["hypervolume"]) for row in quality)
    comparisons = list(csv.DictReader((report / "comparisons.csv").open()))
    lead = next(
        row
        for row in comparisons
        if (row["condition"], row["other"], row["metric"]) == ("imbalanced", "mgda", "average")
    )
    assert float(lead["low"]) > 0 and lead["seeds"] == "3" and lead["interval"] == "seeds"


def test_one_table_a_condition(tmp_path: Path):
    groups = group_runs(load_runs(write_runs(tmp_path / "tiny", make_experiment())))
    (first, balanced), (second, imbalanced) = build_tables(groups)
    assert (first, second) == ("balanced", "imbalanced") and not balanced.references
    assert imbalanced.references == {"sft", "ppo_helpfulness"}
    assert [row.name.base for row, _ in imbalanced.rows] == [
        "sft", "ppo_helpfulness", "ppo_harmlessness", "morlhf_0.5", "mgda", "gapo_p1",
    ]  # fmt: skip
    assert len(balanced.rows) == 10
    for table in (balanced, imbalanced):
        assert [cells[0].mark for _, cells in table.rows].count("best") == 1
    average = [column.key for column in balanced.columns].index("average")
    cells = {row.name.text: cells[average] for row, cells in imbalanced.rows}
    assert cells["gapo_p1@imbalanced"].mark == "best" and cells["gapo_p1@imbalanced"].half_width
    assert cells["sft"].half_width == ""  # a single seed has no deviation of its average
    assert imbalanced.spread == (
        "± is the standard deviation over 3 seeds; of SFT the half-width of the 95% interval over prompts."
    )
    labels = [imbalanced.row_label(row) for row, _ in imbalanced.rows]
    assert labels[:3] == ["SFT (balanced)", "PPO helpfulness (balanced)", "PPO harmlessness"]
    assert [balanced.row_label(row) for row, _ in balanced.rows][:2] == ["SFT", "PPO helpfulness"]
    runs = [run for group in groups for run in group.runs[:1]]
    assert build_table(runs).row_label(runs[-1]) == runs[-1].name.label
    assert build_table(runs).spread == build_table(group_runs(runs)).spread
    assert build_table(runs).spread == "± is the half-width of the 95% interval over prompts."
