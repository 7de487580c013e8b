"""The report's sections from runs whose figures are known: summary, gold scores, judgements, curves, samples, plane."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from eval import report
from eval.reporting import sections
from eval.reporting.curves import MOST_LINES, method_rows, tag_curve
from eval.reporting.plane import find_moves, short_label
from eval.reporting.results import compute_numbers
from eval.reporting.sections.comparisons import comparison_tables
from eval.reporting.sections.fronts import quality_tables
from eval.reporting.sections.gold import build_gold_table, find_anchor
from eval.reporting.sections.judge import find_judgement
from eval.reporting.sections.samples import choose_samples
from eval.reporting.sections.summary import leader_words, summarize_report
from eval.reporting.seeds import group_runs
from eval.reporting.tables import build_table, interval_cell
from eval.results.runs import Run, find_fronts, parse_run_name
from tests.evaluations import make_run, noisy_run, write_runs

NOISE = np.random.default_rng(7).normal(size=(30, 2))


def shifted_run(name: str, *shift: float, gold_shift: tuple[float, float] | None = None, **options) -> Run:
    """The same 30 responses for every run, moved by `shift` [2]: paired differences are exact."""
    return make_run(name, NOISE + shift, gold=NOISE + (shift if gold_shift is None else gold_shift), **options)


# ---- summary and tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    scaled = {"score_scale": [["harmlessness", 4.0]]}
    return compute_numbers(
        [
            shifted_run("sft", 0.0, 0.0),
            shifted_run("ppo_helpfulness", 3.0, -2.0),
            shifted_run("ppo_harmlessness", -2.0, 3.0, gold_shift=(2.5, 3.0)),
            shifted_run("morlhf_0.5", 1.0, 1.0, gold_shift=(2.0, 2.0)),
            shifted_run("mgda", 0.5, 0.5, gold_shift=(0.5, 0.5)),
            shifted_run("gapo_p1", 1.0, 1.0, gold_shift=(1.0, 1.0)),
            shifted_run("p_gapo_0.2", 0.0, 2.0),
            shifted_run("p_gapo_0.8", 2.0, 0.0),
            shifted_run("morlhf_0.2", 0.0, 1.5),
            shifted_run("morlhf_0.8", -0.5, 0.0),
            shifted_run("mgda@imbalanced", 2.0, -1.0, args=scaled),
            shifted_run("gapo_p1@imbalanced", 1.0, 1.0, args=scaled),
        ]
    )


def test_summary_tells_leads_from_ties(numbers):
    balanced, imbalanced = summarize_report(numbers)
    assert (balanced.condition, imbalanced.condition) == ("balanced", "imbalanced")
    average, gold_average, *_ = balanced.leaders
    assert average.measure == "average of the model scores"
    assert average.leader.startswith("MORLHF 0.5 ") and [tie[:8] for tie in average.ties] == ["GAPO p=1"]
    assert average.standings == {"GAPO p=1": {"ahead": ["MGDA"], "level": ["MORLHF 0.5"], "behind": []}}
    assert gold_average.leader.startswith("PPO harmlessness") and gold_average.ties == []
    assert gold_average.standings["GAPO p=1"] == {"ahead": ["MGDA"], "level": [], "behind": ["MORLHF 0.5"]}
    leader = imbalanced.leaders[0]
    assert leader.leader.startswith("GAPO p=1") and leader.standings["GAPO p=1"]["ahead"] == ["MGDA"]
    said = "".join(word if isinstance(word, str) else word.text for word in leader_words(gold_average))
    assert said.endswith(", clear of all others. GAPO p=1 is ahead of MGDA; behind MORLHF 0.5.")


def test_summary_sentences(numbers):
    balanced, imbalanced = (summary.sentences for summary in summarize_report(numbers))
    helpful = "Helpfulness: PPO helpfulness is the highest row"
    assert balanced[0].startswith(f"{helpful} and PPO harmlessness the lowest (model")
    assert balanced[1].startswith(f"{helpful} and SFT the lowest (gold")
    ordered = "Fronts ordered by preference: P-GAPO on model scores and gold scores; MORLHF on no kind of score."
    assert ordered in balanced
    assert any(sentence.endswith("P-GAPO is ahead of MORLHF.") for sentence in balanced)
    assert imbalanced[0].startswith("Training multiplied the scores of harmlessness by 4;")
    assert not any("Fronts" in sentence for sentence in imbalanced)


def test_tables_of_fronts_and_comparisons(numbers):
    ((condition, quality),) = quality_tables(numbers)
    assert condition == "balanced" and [row.label for row, _ in quality.rows] == ["P-GAPO", "MORLHF"]
    assert quality.groups == [("front", 1), ("model scores", 3), ("gold scores", 3)]
    tables = {(title, method): table for title, method, table, _ in comparison_tables(numbers)}
    assert [of_fronts for *_, of_fronts in comparison_tables(numbers)] == [False, True, False]
    assert set(tables) == {("balanced", "GAPO"), ("balanced", "P-GAPO"), ("imbalanced", "GAPO")}
    rows = {row.label: cells for row, cells in tables["balanced", "GAPO"].rows}
    assert rows["GAPO p=1 − MGDA"][0].value == "0.50 [0.50, 0.50]" and rows["GAPO p=1 − MGDA"][0].mark == "ahead"
    assert rows["GAPO p=1 − MORLHF 0.5"][0].mark == ""
    titles = [(column.group, column.title) for column in tables["balanced", "GAPO"].columns]
    assert rows["GAPO p=1 − MORLHF 0.5"][titles.index(("gold scores", "average"))].mark == "behind"
    assert "P-GAPO front − MORLHF front" in [row.label for row, _ in tables["balanced", "P-GAPO"].rows]


def test_a_users_own_method_is_compared_and_named():
    """With the paper's method and with all others; and where the paper's is not there."""
    places = {"mgda": 0.5, "gapo_p1": 1.0, "mine": 2.0, "upgrad": 0.0}
    runs = [shifted_run(name, place, place) for name, place in places.items()]
    numbers = compute_numbers(runs)
    pairs = dict.fromkeys((entry["method"], entry["other"]) for entry in numbers.comparisons)
    assert list(pairs) == [("gapo_p1", other) for other in ("mgda", "mine", "upgrad")] + [
        ("mine", "mgda"), ("mine", "upgrad")
    ]  # fmt: skip
    leader = summarize_report(numbers)[0].leaders[0]
    assert leader.leader.startswith("mine ") and leader.ties == []
    assert leader.standings["mine"] == {"ahead": ["GAPO p=1", "MGDA", "UPGrad"], "level": [], "behind": []}
    assert leader.standings["GAPO p=1"] == {"ahead": ["MGDA", "UPGrad"], "level": [], "behind": ["mine"]}
    assert [method for _, method, *_ in comparison_tables(numbers)] == ["GAPO", "mine"]
    without = compute_numbers([run for run in runs if run.name.base in ("mgda", "upgrad")])
    assert {(entry["method"], entry["other"]) for entry in without.comparisons} == {("upgrad", "mgda")}


def test_an_average_over_units_ranks_nothing():
    """Two models are alike; a function beside a model is not, whose average is neither marked nor a measure."""
    for kinds, alike in ((("reward", "cost"), True), (("reward", "function"), False)):
        runs = [
            make_run(name, NOISE + shift, kinds=kinds)
            for name, shift in (("mgda", (0, 0.5)), ("gapo_p1", (1, 0)), ("gapo_p1#43", (1, 0)), ("mgda#43", (0, 0.4)))
        ]
        numbers = compute_numbers(runs)
        table = build_table(numbers.groups)
        index = [column.title for column in table.columns].index("average")
        assert any(cells[index].mark for _, cells in table.rows) == alike
        measures = [leader.measure for leader in summarize_report(numbers)[0].leaders]
        assert ("average of the model scores" in measures) == alike and "hypervolume, model scores" in measures
        metrics = [entry["metric"] for entry in numbers.comparisons]
        assert metrics == (["average", "hypervolume"] if alike else ["helpfulness", "harmlessness", "hypervolume"])


def test_what_is_not_judged_is_told_once_and_breaks_nothing(tmp_path: Path, monkeypatch):
    """Figures are over what is judged; of an objective that judges none of a run's responses there is a dash."""
    scores = {"sft": NOISE + [0, 1], "mgda": NOISE + [1, 0], "gapo_p1": NOISE + [1, 1]}
    scores["mgda"][:12, 0] = scores["gapo_p1"][6:20, 0] = np.nan
    scores["sft"][:, 0] = np.nan
    runs = [make_run(name, values, gold=NOISE) for name, values in scores.items()]
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(write_runs(tmp_path / "preset", runs))])
    report.main()
    folder = tmp_path / "preset" / "report"
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    said = "Not every response is judged: of the responses of a run, helpfulness 0–18 of 30. Figures are over those."
    assert markdown.count(said) == (folder / "report.html").read_text(encoding="utf-8").count(said) == 1
    assert "where both responses are judged: 10 of 30 prompts." in markdown  # those from the 21st on
    mean = NOISE[12:, 0].mean() + 1
    assert f"| MGDA | <u>{mean:.2f} ± 0.25</u> |" in markdown and "| SFT | – |" in markdown
    assert "| SFT | helpfulness – (" in markdown
    entry = next(
        e for e in json.loads((folder / "results.json").read_text())["comparisons"] if e["metric"] == "average"
    )
    assert entry["pairs"] == 10 and entry["difference"] == pytest.approx(0.5)  # noise is the same: 0 and 1
    assert (folder / "comparisons.csv").read_text().splitlines()[0].endswith(",interval,pairs")
    groups = group_runs(runs)
    assert find_anchor(groups, "helpfulness") is None and find_anchor(groups, "harmlessness") is not None
    (sample,) = choose_samples(runs, {}, 1)
    assert [score.best for score in sample.answers[0].scores] == [False, True]


def test_small_hypervolumes_keep_their_digits():
    runs = [make_run(name, 0.05 * NOISE + shift) for name, shift in (("sft", 0), ("mgda", 0.02), ("gapo_p1", 0.05))]
    numbers = compute_numbers(runs)
    volume = next(leader for leader in summarize_report(numbers)[0].leaders if leader.measure.startswith("hypervolume"))
    assert volume.leader == "GAPO p=1 0.0025"
    ((_, _, table, _),) = comparison_tables(numbers)
    assert table.rows[0][1][1].value.startswith("0.0021 [0.00")
    entry = {"mean": 0.5, "low": 0.00012, "high": 1.0}
    assert interval_cell(entry, small=True).value == "0.50 [0.00, 1.00]"
    assert interval_cell(dict.fromkeys(entry, 0.0), small=True).value == "0.00 [0.00, 0.00]"


def test_the_share_of_harmless_responses_is_called_by_its_cost():
    def titles(objectives: tuple[str, str], kinds: tuple[str, ...]) -> list[str]:
        run = make_run("sft", NOISE, objectives=objectives, kinds=kinds)
        return [column.title for column in build_table([run]).columns]

    assert titles(("helpfulness", "harmlessness"), ("reward", "cost"))[2] == "harmless %"
    assert titles(("toxicity", "wit"), ("cost", "reward"))[2] == "toxicity > 0, %"


SECTION = """
from eval.reporting.blocks import Break, Cards, Figures, Heading, Html, Mark, Markup, Picture, Points, Section, Text
from eval.reporting.plots import plot_table

PLACE = 35


def make(report):
    (title, table), *_ = report.tables
    plot_table(table, report.folder / "mine.png")
    words = ["<b> & *", Mark("so", "strong"), Break(), "on"]
    return Section("My own section", "Own", [
        Heading("Head"), Text(words), Points([["one"], words]), Figures(table, folded="more"),
        Picture("mine.png", "Mine"), Cards([("Card", [Text(["inside"])])]), Html(Markup("<hr>"), Markup("---")),
        Text(["paper"], only="markdown"),
    ])
"""


def test_a_section_is_one_file(tmp_path: Path, monkeypatch):
    """Every kind of block, in the place that the file asks for, on the page and in markdown."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_section.py").write_text(SECTION)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path / "own")])
    root = write_runs(tmp_path / "preset", [noisy_run(name, (0.5, 1.0)) for name in ("sft", "gapo_p1")])
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(root), "--samples", "1"])
    report.main()
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert '<a href="#own">Own</a>' in page and '<section id="own">' in page and "<hr>" in page
    assert page.index("<h2>Results</h2>") < page.index("<h2>My own section</h2>") < page.index("<h2>Training</h2>")
    assert page.count("&lt;b&gt; &amp; *<strong>so</strong> on") == 2 and 'alt="Mine"' in page and "paper" not in page
    markdown = (root / "report" / "report.md").read_text(encoding="utf-8")
    own = markdown[markdown.index("## My own section") : markdown.index("## Model score against gold score")]
    spoken = "&lt;b&gt; &amp; \\***so**\non"
    start = f"## My own section\n\n### Head\n\n{spoken}\n\n- one\n- {spoken}\n\n| run |"
    assert own.startswith(start) and own.endswith("![Mine](mine.png)\n\n### Card\n\ninside\n\n---\n\npaper\n\n")


# ---- gold scores -------------------------------------------------------------------------------------------


def test_excess_over_the_gold_score():
    """Model score = 2 gold + 1 for the SFT model; a policy that adds 0.5 to the model score alone exploits by 0.5."""
    gold = NOISE
    sft = make_run("sft", 2 * gold + 1, gold=gold)
    honest = make_run("mgda", 2 * (gold + 0.3) + 1, gold=gold + 0.3)
    exploiting = make_run("gapo_p1", 2 * (gold + 0.3) + 1.5, gold=gold + 0.3)
    groups = group_runs([sft, honest, exploiting])
    anchor = find_anchor(groups, "helpfulness")
    assert anchor.slope == pytest.approx(2.0) and anchor.gold == pytest.approx(gold[:, 0].mean())
    table = build_gold_table(groups)
    cells = {run.name.text: [cell.text for cell in row[:4]] for run, row in table.rows}
    assert cells["sft"] == ["0.00", "0.00", "0.00 ± 0.00", "1.00"]
    assert cells["mgda"] == ["0.60", "0.30", "0.00 ± 0.00", "1.00"]
    assert cells["gapo_p1"] == ["1.10", "0.30", "0.50 ± 0.00", "1.00"]
    assert build_gold_table(group_runs([exploiting])) is None  # nothing to compare with


def test_excess_over_seeds():
    sft = make_run("sft", NOISE, gold=NOISE)
    seeds = [make_run(f"mgda{suffix}", NOISE + rise, gold=NOISE) for suffix, rise in (("", 0.2), ("#43", 0.6))]
    table = build_gold_table(group_runs([sft, *seeds]))
    assert table.rows[1][1][2].text == f"0.40 ± {statistics.stdev([0.2, 0.6]):.2f}"


# ---- judgements --------------------------------------------------------------------------------------------


def judgement(policy: str, win: float, baseline: str = "sft", usable: bool = True) -> dict:
    score, lose = {"mean": win / 100, "ci95": 0.1}, 90 - win
    shares = {"win": win, "tie": 10.0, "lose": lose}
    entry = {
        "relative_score": score if usable else None,
        **{key: {"percent": x, "low": x - 5, "high": x + 5} if usable else None for key, x in shares.items()},
        "comparisons": 20 if usable else 0,
        "unusable": 0 if usable else 20,
    }
    parts = {"policy": policy, "baseline": baseline, "judge": "a model at a host", "prompts": 20, "rows": []}
    return {**parts, "objectives": {"helpfulness": entry}}


def test_judgements_of_seeds_are_one_row():
    entries = [
        judgement("mgda", 90.0, baseline="gapo_p1"),
        judgement("mgda@imbalanced", 20.0),
        judgement("mgda#43", 50.0),
        judgement("mgda", 30.0),
        judgement("gapo_p1", 60.0),
        judgement("gapo_p2", 60.0, usable=False),
    ]
    found = find_judgement(entries)
    assert (found.baseline.text, found.judge, found.prompts) == ("sft", "a model at a host", "20")
    rows = {run.name.text: [cell.text for cell in cells] for run, cells in found.table.rows}
    assert list(rows) == ["mgda", "gapo_p1", "gapo_p2", "mgda@imbalanced"]
    assert rows["mgda"] == [f"0.40 ± {statistics.stdev([0.3, 0.5]):.2f}", "40", "10", "50"]
    assert rows["gapo_p1"] == ["0.60 ± 0.10", "60", "10", "30"] and rows["gapo_p2"] == ["–"] * 4
    bounds = {policy.name.text: policy.bounds for policy in found.policies}
    assert bounds["gapo_p1"]["helpfulness", "win"] == (55.0, 65.0)
    deviation = statistics.stdev([30, 50])
    assert bounds["mgda"]["helpfulness", "win"] == pytest.approx((40 - deviation, 40 + deviation))
    assert find_judgement([]) is None and find_judgement(entries[:1]).baseline.text == "gapo_p1"


# ---- curves, samples, plane --------------------------------------------------------------------------------


def test_curves_over_seeds():
    first, second = {"kl": [(1, 1.0), (2, 2.0), (3, 4.0)]}, {"kl": [(1, 3.0), (2, 2.0)]}
    runs = [shifted_run("mgda", 0, 0, metrics=first), shifted_run("mgda#43", 0, 0, metrics=second)]
    curve = tag_curve(*group_runs(runs), "kl")
    assert curve.steps.tolist() == [1, 2] and curve.values.tolist() == [2.0, 2.0]
    assert curve.spread.tolist() == pytest.approx([statistics.stdev([1, 3]) / 2] * 2)  # smoothed with the 0 of step 2
    assert tag_curve(*group_runs(runs[:1]), "kl").spread is None and tag_curve(*group_runs(runs), "entropy") is None


def test_panels_are_not_crowded():
    names = ["ppo_helpfulness", "safe_rlhf", "mgda", "gapo_p1", "p_gapo_0.2", "p_gapo_0.8", "morlhf_0.2"]
    names += [f"mine_{index}" for index in range(MOST_LINES + 1)]
    rows = method_rows(group_runs([shifted_run(name, 0, 0) for name in names]))
    assert [[group.name.text for group in row] for row in rows[:4]] == [names[:2], names[2:4], names[4:6], names[6:7]]
    assert [len(row) for row in rows[4:]] == [MOST_LINES, 1]


def test_few_policies_are_shown_side_by_side():
    single = ["safe_rlhf", "fast_rl", "morlhf_0.5", "mgda", "gapo_p1", "gapo_p2"]
    bases = ["sft", "ppo_helpfulness", "ppo_harmlessness", *single, "p_gapo_0.2", "p_gapo_0.8"]
    runs = [noisy_run(f"{base}{suffix}", (0, 0)) for base in bases for suffix in ("", "#43", "@imbalanced")]
    sample, *_ = choose_samples(runs, {}, 1)
    shown = [answer.run.name.text for answer in sample.answers]
    chosen = ["sft", "ppo_helpfulness", "ppo_harmlessness", *single[:3], "gapo_p1", "p_gapo_0.8"]
    assert shown == chosen
    others = {answer.run.name.text for answer in sample.others}
    assert others == {base + suffix for base in bases for suffix in ("", "@imbalanced")} - set(chosen)
    few = choose_samples(runs[:6], {}, 1)[0]
    assert [answer.run.name.text for answer in few.answers] == [
        "sft", "sft@imbalanced", "ppo_helpfulness", "ppo_helpfulness@imbalanced"
    ]  # fmt: skip
    assert few.others == []


def test_labels_of_front_points():
    names = ["p_gapo_0.2", "p_gapo_0.8", "gapo_p1", "morlhf_0.5", "morlhf_0.2", "rewarded_soup_0.4"]
    fronts = find_fronts([shifted_run(name, 0, 0) for name in names])
    labels = [short_label(parse_run_name(name), fronts) for name in names]
    assert labels == ["0.2", "0.8", "GAPO p=1", "MORLHF 0.5", "0.2", "Rewarded Soup 0.4"]


def test_moves_between_conditions():
    groups = group_runs([shifted_run(name, 0, 0) for name in ("sft", "mgda", "mgda@x", "gapo_p1@x", "gapo_p2")])
    assert [(start.name.text, end.name.text) for start, end in find_moves(groups, "x")] == [("mgda", "mgda@x")]


@pytest.mark.slow
def test_every_condition_has_its_pictures_and_tables(tmp_path: Path, monkeypatch):
    """Two conditions and two seeds: names of files, and a page and a markdown that show both conditions."""
    runs = [noisy_run(f"{base}{suffix}", (0.5, 1.0), metrics={"reward/helpfulness": [(1, 0.0), (2, 1.0)]})
            for base in ("sft", "mgda", "gapo_p1") for suffix in ("", "#43", "@cost x 4", "@cost x 4#43")]  # fmt: skip
    root = write_runs(tmp_path / "preset", runs)
    (root / "eval" / "judge").mkdir()
    (root / "eval" / "judge" / "mgda_vs_sft.json").write_text(json.dumps(judgement("mgda", 30.0)))
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(root), "--samples", "1"])
    report.main()
    pictures = {"pareto", "table1", "training_curves", "exploitation", "judge"}
    pictures |= {f"{stem}_cost_x_4" for stem in ("pareto", "table1", "training_curves")}
    assert {path.stem for path in (root / "report").glob("*.png")} == pictures
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<h3>Cost x 4</h3>") == page.count("<h3>Balanced</h3>") == 2  # summary and results
    assert "± is the standard deviation over 2 seeds" in page and "seeds a policy" in page
    markdown = (root / "report" / "report.md").read_text(encoding="utf-8")
    for name in pictures:
        assert f"({name}.png)" in markdown
