"""The report from hand-made evaluations: figures, order, marks, files, and a page that is safe to open."""

import csv
import json
import subprocess
import sys
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import report
from eval.reporting.conflict import find_conflict
from eval.reporting.curves import smooth
from eval.reporting.label_placement import overlap_areas, place_labels
from eval.reporting.sections.samples import choose_samples
from eval.reporting.sections.weights import coefficient_share, share_curve
from eval.reporting.seeds import group_runs
from eval.reporting.tables import build_table, format_number, mark_best
from eval.results.runs import find_fronts, load_runs, parse_run_name, sort_names
from utils.process.errors import run_main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SMOKE = {"sft": (0.0, 1.0), "morlhf_0.5": (0.3, 2.0), "gapo_p1": (0.5, 2.0)}
TINY = SMOKE | {
    "ppo_help": (1.5, -0.5),
    "ppo_safe": (-1.0, 2.8),
    "mgda": (0.2, 2.1),
    "gapo_p2": (0.1, 2.2),
    "p_gapo_0.2": (-0.5, 2.5),
    "p_gapo_0.8": (1.1, 0.8),
}
ATTACK = "<script>alert(1)</script> | *bold* [x](http://evil.example)\nsecond <img src=http://evil.example> line"


def make_row(index: int, scores: dict[str, float], gold: dict[str, float] | None, response: str) -> dict:
    prompt = f"Prompt {index} <b>?"
    row = {
        "prompt": prompt,
        "messages": [{"role": "user", "content": prompt}],
        "source": f"test.jsonl:{index + 1}",
        "response": response,
        "length": 10,
        "finished": index % 2 == 0,
        "kl": 1.0,
        "scores": scores,
    }
    return row | ({"gold": gold} if gold else {})


def write_run(root: Path, name: str, means: tuple[float, ...], objectives: tuple[str, ...], gold: bool = True) -> None:
    """eval/<name>.json with eight prompts around `means`, and settings but for sft."""
    rng = np.random.default_rng(sum(name.encode()))
    values = rng.normal(size=(8, len(means))) + means
    as_scores = [dict(zip(objectives, map(float, row), strict=True)) for row in values]
    rows = [make_row(i, scores, scores if gold else None, f"{name} {ATTACK}") for i, scores in enumerate(as_scores)]
    summary = {
        "objectives": {o: {"mean": m, "ci95": 0.25} for o, m in zip(objectives, means, strict=True)},
        "harmless_ratio": 62.5,
        "average": float(np.mean(means)),
    }
    args = (
        {}
        if name == "sft"
        else {"algorithm": name.split("_")[0], "seed": 3, "kl_coeff": 0.05, "output_dir": f"policies/{name}"}
    )
    evaluation = {"run": name, "args": args, **summary, "kl": 2.0, "response_length": 10.0, "rows": rows}
    path = root / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation | ({"gold": summary} if gold else {})))


def write_metrics(root: Path, name: str, tags: tuple[str, ...]) -> None:
    path = root / "policies" / name / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, **{tag: 0.08 * (step + 1) for tag in tags}}) for step in range(12)]
    path.write_text("\n".join(lines) + "\n")


def write_preset(root: Path, runs: dict[str, tuple[float, ...]], objectives=("help", "safe"), gold=True) -> Path:
    for name, means in runs.items():
        write_run(root, name, means, objectives, gold)
        if name != "sft":
            tags = ("reward/help", "reward/safe", "kl", "response_length", "loss/actor")
            gradients = ("gradient/cosine/help_safe", "gradient/norm/help", "gradient/norm/safe")
            write_metrics(root, name, tags + (gradients if "gapo" in name else ()))
    labels = [{"prompt": f"Prompt {i} <b>?", "risky": i < 4, "category": f"c{i % 2}"} for i in range(8)]
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "prompts_test.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    return root


def make_report(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(root), *arguments])
    report.main()
    return root / "report"


class Page(HTMLParser):
    """Tags of a page, and everything in it that a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of nine runs, made through the command line."""
    root = write_preset(tmp_path_factory.mktemp("reports") / "tiny", TINY)
    done = subprocess.run(
        [sys.executable, "eval/report.py", "--input_dir", str(root), "--samples", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "report of 9 runs" in done.stdout
    return root / "report"


def test_files(tiny: Path):
    names = {
        "report.md",
        "report.html",
        "results.json",
        "table1.csv",
        "front.csv",
        "front_quality.csv",
        "comparisons.csv",
        "table1.png",
        "pareto.png",
    }
    pictures = {"training_curves.png", "conflict.png", "exploitation.png"}
    assert {path.name for path in tiny.iterdir()} == names | pictures
    assert not list(tiny.parent.glob(".report*"))


def test_results_schema(tiny: Path):
    results = json.loads((tiny / "results.json").read_text())
    assert set(results) == {"runs", "groups", "reference_point", "fronts", "comparisons"}
    assert set(results["runs"]) == set(results["groups"]) == set(TINY)
    for name, entry in results["runs"].items():
        known = {"algorithm", "objectives", "harmless_ratio", "average", "kl", "hypervolume", "gold", "seed"}
        assert set(entry) == known | ({"conflict"} if "gapo" in name else set())
        help_score, safe_score = TINY[name]
        assert entry["objectives"] == {
            "help": {"mean": help_score, "ci95": 0.25},
            "safe": {"mean": safe_score, "ci95": 0.25},
        }
        assert set(entry["gold"]) == {"objectives", "harmless_ratio", "average", "hypervolume"}
    assert results["runs"]["gapo_p1"]["algorithm"] == "gapo" and results["runs"]["gapo_p1"]["seed"] == 3
    assert results["runs"]["sft"]["algorithm"] == "sft" and results["runs"]["sft"]["seed"] is None


def test_csv(tiny: Path):
    rows = list(csv.DictReader((tiny / "table1.csv").open()))
    assert [row["run"] for row in rows] == [
        "sft",
        "ppo_help",
        "ppo_safe",
        "morlhf_0.5",
        "mgda",
        "gapo_p1",
        "gapo_p2",
        "p_gapo_0.2",
        "p_gapo_0.8",
    ]
    assert list(rows[0]) == [
        "run",
        "help",
        "help_ci95",
        "safe",
        "safe_ci95",
        "harmless_ratio",
        "average",
        "kl",
        "response_length",
        "gold_help",
        "gold_help_ci95",
        "gold_safe",
        "gold_safe_ci95",
        "gold_harmless_ratio",
    ]
    assert float(rows[1]["help"]) == 1.5 and float(rows[1]["help_ci95"]) == 0.25
    front = list(csv.DictReader((tiny / "front.csv").open()))
    assert [(row["front"], row["weight"], row["run"]) for row in front] == [
        ("p_gapo", "0.2", "p_gapo_0.2"),
        ("p_gapo", "0.5", "gapo_p1"),
        ("p_gapo", "0.8", "p_gapo_0.8"),
    ]


def test_pictures(tiny: Path):
    for name, (least_width, least_height) in {
        "pareto.png": (1800, 800),
        "table1.png": (1200, 400),
        "training_curves.png": (1700, 700),
        "conflict.png": (1700, 500),
        "exploitation.png": (1700, 700),
    }.items():
        with Image.open(tiny / name) as image:
            assert image.width >= least_width and image.height >= least_height
            assert image.convert("L").getextrema() != (255, 255)


def test_page_is_self_contained(tiny: Path):
    text = (tiny / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "b", "object", "embed"} & set(page.tags)
    assert page.tags.count("img") == 4
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in page.fetched)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_model_output_is_escaped(tiny: Path):
    page = (tiny / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Prompt 0 &lt;b&gt;?" in page or "Prompt 1 &lt;b&gt;?" in page
    markdown = (tiny / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<img" not in markdown
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| \*bold\* \[x\](http" in markdown


def test_page_shows_every_run_and_prompt_kind(tiny: Path):
    page = (tiny / "report.html").read_text(encoding="utf-8")
    assert page.count('<article class="sample">') == 4
    assert page.count('class="kind risky"') == page.count('class="kind benign"') == 2
    assert page.count('<div class="answer"') == 4 * len(TINY)
    for heading in (
        "What you see",
        "The trade-off",
        "Results",
        "One method minus another",
        "Model score against gold score",
        "Training",
        "How much the objectives conflict",
        "Sample responses",
        "Settings",
        "How to read this",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "P-GAPO 0.2" in page and "GAPO p=1" in page and "kl_coeff" in page


def test_markdown_table(tiny: Path):
    lines = (tiny / "report.md").read_text(encoding="utf-8").splitlines()
    best = next(line for line in lines if line.startswith("| PPO help |"))
    assert (
        best == "| PPO help | **1.50 ± 0.25** | −0.50 ± 0.25 | 62.5 | 0.50 | 2.00 | 10.0"
        " | **1.50 ± 0.25** | −0.50 ± 0.25 | 62.5 |"
    )
    assert any(line.startswith("| P-GAPO 0.8 | <u>1.10 ± 0.25</u> |") for line in lines)
    assert "![Training curves](training_curves.png)" in lines
    assert "![How much the objectives conflict](conflict.png)" in lines


def test_smoke_preset(tmp_path: Path, monkeypatch):
    """Three runs, no front of two points, no labels."""
    root = write_preset(tmp_path / "smoke", {"sft": (0.0, 1.0), "morlhf_0.5": (0.3, 2.0)})
    (root / "data" / "prompts_test.jsonl").unlink()
    folder = make_report(root, monkeypatch)
    assert (folder / "front.csv").read_text().startswith("front,variant,weight,run,help") and find_fronts(
        load_runs(root)
    ) == []
    assert 'class="kind' not in (folder / "report.html").read_text()
    stale = folder / "stale.txt"
    stale.touch()
    write_preset(root, SMOKE)
    make_report(root, monkeypatch)
    assert not stale.exists() and len(json.loads((folder / "results.json").read_text())["runs"]) == 3


@pytest.mark.parametrize(
    ("count", "note"), [(1, "against the KL divergence"), (5, "the plot shows the first 4, pair by pair")]
)
def test_other_numbers_of_objectives(count: int, note: str, tmp_path: Path, monkeypatch):
    """One objective, or five; without gold scores or metrics."""
    names = tuple(f"o{i}" for i in range(count))
    for run in ("sft", "ppo_o0"):
        write_run(tmp_path, run, tuple(0.1 * i for i in range(count)), names, gold=False)
    folder = make_report(tmp_path, monkeypatch)
    page = (folder / "report.html").read_text()
    assert note in page and "No run left training metrics" in page
    assert not (folder / "training_curves.png").exists() and not (folder / "conflict.png").exists()
    assert "How much the objectives conflict" not in page + (folder / "report.md").read_text()
    assert "gold" not in json.loads((folder / "results.json").read_text())["runs"]["sft"]


def test_run_names():
    name = parse_run_name("p_gapo_0.2@imbalanced#3")
    assert (name.base, name.family, name.weight, name.condition, name.seed) == (
        "p_gapo_0.2",
        "p_gapo",
        0.2,
        "imbalanced",
        "3",
    )
    labels = {
        "sft": "SFT",
        "gapo_p2": "GAPO p=2",
        "ppo_help": "PPO help",
        "morlhf_0.5@imbalanced": "MORLHF 0.5 (imbalanced)",
        "rewarded_soup_0.4": "Rewarded Soup 0.4",
        "gapo_p1#2": "GAPO p=1 (#2)",
        "mine": "mine",
    }
    assert {text: parse_run_name(text).label for text in labels} == labels


def test_order_of_runs():
    expected = [
        "sft",
        "ppo_help",
        "ppo_safe",
        "safe_rlhf",
        "fast_rl",
        "morlhf_0.5",
        "mgda",
        "gapo_p1",
        "gapo_p1#2",
        "gapo_p1#10",
        "gapo_p1@imbalanced",
        "gapo_p2",
        "p_gapo_0.2",
        "p_gapo_0.2@imbalanced",
        "p_gapo_0.8",
        "morlhf_0.2",
        "morlhf_0.8",
        "rewarded_soup_0.2",
        "another",
        "ppo_other",
    ]
    assert sort_names(sorted(expected, reverse=True), ["help", "safe"]) == expected


def test_fronts_by_condition(tmp_path: Path):
    for name in ("gapo_p1", "p_gapo_0.2", "p_gapo_0.2@imbalanced", "p_gapo_0.8@imbalanced", "morlhf_0.5"):
        write_run(tmp_path, name, (0.0, 0.0), ("help", "safe"))
    fronts = {(f.family, f.variant): [weight for weight, _ in f.points] for f in find_fronts(load_runs(tmp_path))}
    assert fronts == {("p_gapo", ""): [0.2, 0.5], ("p_gapo", "imbalanced"): [0.2, 0.8]}


def test_marks_go_by_printed_figures():
    assert mark_best([1.0, 3.0, None, 2.0, 3.0]) == ["", "best", "", "second", "best"]
    assert mark_best([1.0]) == [""] and mark_best([2.0, 2.0]) == ["", ""]
    assert format_number(-0.001, 2) == "0.00" and format_number(-1.5, 1) == "−1.5" and format_number(None, 2) == "–"


def test_runs_that_look_equal_are_marked_equal(tmp_path: Path):
    for name, mean in (("sft", 1.001), ("mgda", 1.004), ("gapo_p1", 0.5)):
        write_run(tmp_path, name, (mean,), ("help",))
    table = build_table(load_runs(tmp_path))
    assert [cells[0].mark for _, cells in table.rows] == ["best", "best", "second"]


def test_columns_without_figures_are_left_out(tmp_path: Path):
    for name in ("sft", "mgda"):
        write_run(tmp_path, name, (0.0,), ("help",), gold=False)
        path = tmp_path / "eval" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"harmless_ratio": None}))
    assert [column.title for column in build_table(load_runs(tmp_path)).columns] == [
        "help",
        "average",
        "KL",
        "length",
    ]


def test_samples_show_where_policies_differ(tmp_path: Path):
    for name, gaps in (("sft", [0, 0, 0, 0, 0, 0]), ("mgda", [1, 5, 2, 9, 0, 3])):
        write_run(tmp_path, name, (0.0,), ("help",), gold=False)
        path = tmp_path / "eval" / f"{name}.json"
        evaluation = json.loads(path.read_text())
        evaluation["rows"] = [make_row(i, {"help": float(gap)}, None, "r") for i, gap in enumerate(gaps)]
        path.write_text(json.dumps(evaluation))
    runs = load_runs(tmp_path)
    assert [sample.source for sample in choose_samples(runs, {}, 2)] == ["test.jsonl:4", "test.jsonl:2"]
    labels = {f"Prompt {i} <b>?": {"risky": i in (0, 4), "category": i % 2} for i in range(6)}
    samples = choose_samples(runs, labels, 4)
    assert [(sample.source, sample.kind) for sample in samples] == [
        ("test.jsonl:1", "risky"),
        ("test.jsonl:5", "risky"),
        ("test.jsonl:4", "benign"),
        ("test.jsonl:3", "benign"),
    ]
    assert [score.best for answer in samples[0].answers for score in answer.scores] == [False, True]


def test_labels_do_not_overlap():
    """Thirty points, most of them in a cluster."""
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal([400, 300], 60, size=(20, 2)), rng.uniform([60, 60], [740, 540], size=(10, 2))])
    markers = np.concatenate([points - 4, points + 4], axis=1)
    sizes = np.tile([70.0, 11.0], (len(points), 1))
    boxes = place_labels(points, sizes, markers, np.zeros((0, 4)), np.array([0.0, 0.0, 800.0, 600.0]))
    shared = np.array([overlap_areas(box, boxes) for box in boxes])
    assert np.allclose(shared, np.diag(sizes.prod(axis=1)))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [800, 600]).all()


def test_smoothing():
    values = np.sin(np.arange(60.0))
    assert smooth(np.ones(7)).tolist() == [1.0] * 7
    assert smooth(values)[30] == pytest.approx(values[27:34].mean())
    assert np.isfinite(smooth(np.array([1.0, np.nan, 3.0]))).all()


def gradient_row(names: tuple[str, ...], norms: tuple, cosines: tuple, progress: tuple | None = None, **more) -> dict:
    """One step's gradient tags; `cosines` of the pairs in the order that training logs them: ab, ac, bc."""
    pairs = [(names[j], names[i]) for i in range(len(names)) for j in range(i)]
    return {
        **{f"gradient/norm/{name}": norm for name, norm in zip(names, norms, strict=True)},
        **{f"gradient/cosine/{a}_{b}": value for (a, b), value in zip(pairs, cosines, strict=True)},
        **{f"gradient/progress/{name}": value for name, value in zip(names, progress or (), strict=bool(progress))},
        **more,
    }


def write_gradients(root: Path, name: str, objectives: tuple[str, ...], rows: list[dict]) -> None:
    """A run evaluated on `objectives` with one metrics line a row; floats that JSON lacks as Python writes them."""
    write_run(root, name, (0.0,) * len(objectives), objectives, gold=False)
    path = root / "policies" / name / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(rows, start=1)))


def test_conflict_by_hand(tmp_path: Path, monkeypatch):
    """Cosines, norms and progress that are undefined at some steps count at the others."""
    names, nan = ("help", "safe"), float("nan")
    rows = [
        gradient_row(names, (2.0, 1.0), (-0.5,), (0.1, 0.2)),
        gradient_row(names, (8.0, 1.0), (0.25,), (0.1, -0.2)),
        gradient_row(names, (3.0, 1.0), (-1.0,), (0.1, 0.0)),
        gradient_row(names, (5.0, 1.0), (-0.35,), (0.1, 0.3)),
        gradient_row(names, (4.0, 1.0), (0.0,), (0.1, 0.3)),
        gradient_row(names, (0.0, 1.0), (0.0,), (0.0, 0.2)),  # no angle and no ratio against a zero gradient
        gradient_row(names, (1.0, 0.0), (0.0,), (nan, 0.2)),
        gradient_row(names, (float("inf"), 1.0), (0.9,), (0.1, -0.2)),
        gradient_row(names, (9.0, 1.0), (nan,), (0.1, float("inf"))),
        {"kl": 1.0},  # a step without any gradient
    ]
    write_gradients(tmp_path, "gapo_p1", names, rows)
    folder = make_report(tmp_path, monkeypatch)
    assert json.loads((folder / "results.json").read_text())["runs"]["gapo_p1"]["conflict"] == {
        "pairs": {
            "help_safe": {"mean_cosine": -0.32, "negative_cosine_percent": 60.0, "median_norm_ratio": 4.5},
        },
        "common_progress_percent": pytest.approx(300 / 7),  # steps 1, 4, 5 of the seven with a figure for both
    }
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert "| run | cosine | below 0, % | norm ratio | all improve, % |" in lines
    assert "| GAPO p=1 | −0.32 | 60 | 4.50 | 43 |" in lines
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    picture = "data:image/png;base64," + b64encode((folder / "conflict.png").read_bytes()).decode()
    assert picture in page.fetched and "#conflict" in page.fetched


def test_share_of_the_coefficients(tmp_path: Path):
    """c_a / (c_a + c_b), where that is a share; of seeds the mean of the shares, at the steps they have in common."""
    coefficients = [(1.0, 3.0), (2.0, 0.0), (0.0, 0.0), (-1.0, 2.0)]
    for name, scale in (("mgda", 1.0), ("mgda#43", 3.0)):
        rows = [{"coefficient/a": scale * a, "coefficient/b": b} for a, b in coefficients]
        write_gradients(tmp_path, name, ("a", "b"), rows[: 4 if scale == 1.0 else 2])
    write_gradients(tmp_path, "ppo_a", ("a", "b"), [{"coefficient/a": 1.0}] * 3)
    ppo, *seeds = load_runs(tmp_path)
    steps, share = coefficient_share(seeds[0], "a")
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(share, [0.25, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(coefficient_share(seeds[0], "b")[1], [0.75, 0.0, np.nan, np.nan])
    curve = share_curve(*group_runs(seeds), "a")
    np.testing.assert_allclose(curve.values, [0.375, 1.0])
    assert share_curve(*group_runs([ppo]), "a") is None


def test_runs_without_gradients_are_left_out_of_the_conflict(tmp_path: Path, monkeypatch):
    names = ("help", "safe")
    write_gradients(tmp_path, "gapo_p1", names, [gradient_row(names, (1.0, 2.0), (0.5,))] * 3)
    write_gradients(tmp_path, "ppo_help", names, [{"gradient/norm/help": 1.0, "coefficient/help": 1.0}] * 3)
    write_gradients(tmp_path, "morlhf_0.5", names, [{"coefficient/help": 0.5, "coefficient/safe": 0.5}] * 3)
    write_run(tmp_path, "sft", (0.0, 0.0), names, gold=False)
    folder = make_report(tmp_path, monkeypatch)
    results = json.loads((folder / "results.json").read_text())["runs"]
    assert [name for name in results if "conflict" in results[name]] == ["gapo_p1"]
    assert results["gapo_p1"]["conflict"]["common_progress_percent"] is None
    conflict = find_conflict(group_runs(load_runs(tmp_path)))
    assert [run.name.text for run in conflict.runs] == ["gapo_p1"]
    assert conflict.caption.endswith("without --log_gradients: PPO help, MORLHF 0.5.")
    assert conflict.caption in (folder / "report.html").read_text(encoding="utf-8")


def test_conflict_of_three_objectives(tmp_path: Path, monkeypatch):
    """Pairs follow the report's order of objectives, whatever order a run was given them in."""
    names = ("help", "safe", "short")
    row = gradient_row(names, (6.0, 3.0, 2.0), (-0.1, -0.2, 0.3), (1.0, 1.0, -1.0))
    turned = gradient_row(names[::-1], (2.0, 3.0, 6.0), (0.3, -0.2, -0.1), (1.0, 1.0, 1.0))
    write_gradients(tmp_path, "mgda", names, [row] * 4)
    write_gradients(tmp_path, "gapo_p1", names, [turned] * 4)
    folder = make_report(tmp_path, monkeypatch)
    results = json.loads((folder / "results.json").read_text())["runs"]
    assert {key: (pair["mean_cosine"], pair["median_norm_ratio"])
            for key, pair in results["mgda"]["conflict"]["pairs"].items()} == {
        "help_safe": (pytest.approx(-0.1), 2.0),
        "help_short": (pytest.approx(-0.2), 3.0),
        "safe_short": (pytest.approx(0.3), 1.5),
    }  # fmt: skip
    assert results["mgda"]["conflict"]["pairs"] == results["gapo_p1"]["conflict"]["pairs"]
    assert [results[name]["conflict"]["common_progress_percent"] for name in ("mgda", "gapo_p1")] == [0.0, 100.0]
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    row = "| −0.10 | 100 | 2.00 | −0.20 | 100 | 3.00 | 0.30 | 0 | 1.50 |"
    assert f"| MGDA {row} 0 |" in lines and f"| GAPO p=1 {row} 100 |" in lines
    assert any("| safe / short: norm ratio | all improve, % |" in line for line in lines)


def test_conflict_of_many_pairs_shows_the_most_opposed(tmp_path: Path):
    names = ("a", "b", "c", "d")
    cosines = (0.3, -0.2, 0.1, 0.2, -0.6, -0.7)  # ab, ac, bc, ad, bd, cd
    write_gradients(tmp_path, "mgda", names, [gradient_row(names, (1.0,) * 4, cosines)] * 2)
    conflict = find_conflict(group_runs(load_runs(tmp_path)))
    assert [pair.key for pair in conflict.pairs] == ["a_c", "b_d", "c_d"] and conflict.pair_count == 6
    assert "Of 6 pairs, those with the 3 lowest mean cosines are shown." in conflict.caption
    assert [title for title, _ in conflict.table.groups] == ["a / c", "b / d", "c / d", "update"]


def test_conflict_picture_has_a_row_for_every_condition_and_group_of_methods(tmp_path: Path, monkeypatch):
    """And the pairs side by side."""
    sizes = []
    for folder, runs, names in (
        ("plain", ("gapo_p1", "gapo_p1#2"), ("a", "b")),
        ("conditions", ("gapo_p1", "gapo_p1@imbalanced"), ("a", "b")),
        ("methods", ("gapo_p1", "p_gapo_0.2"), ("a", "b")),
        ("three", ("gapo_p1", "mgda"), ("a", "b", "c")),
    ):
        for run in runs:
            row = gradient_row(names, (1.0,) * len(names), (0.5,) * (len(names) * (len(names) - 1) // 2))
            write_gradients(tmp_path / folder, run, names, [row] * 3)
        with Image.open(make_report(tmp_path / folder, monkeypatch) / "conflict.png") as image:
            sizes.append(image.size)
    one, conditions, methods, three = sizes
    assert conditions == methods == (one[0], 2 * one[1])
    assert three[0] > one[0] and three[1] == one[1]


@pytest.mark.filterwarnings("error")
def test_conflict_with_a_gradient_that_is_always_zero(tmp_path: Path, monkeypatch):
    """Nothing to compare: dashes, empty panels, no warning."""
    write_gradients(tmp_path, "mgda", ("a", "b"), [gradient_row(("a", "b"), (0.0, 1.0), (0.0,), (0.0, 1.0))] * 3)
    folder = make_report(tmp_path, monkeypatch)
    assert "| MGDA | – | – | – | 0 |" in (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert (folder / "conflict.png").is_file()


def test_names_are_no_formulas(tmp_path: Path, monkeypatch):
    root = write_preset(tmp_path, {"sft": (0.0, 0.1), "a$^$": (1.0, 0.2)}, ("a$\\frac$b", "$x$ and $"))
    assert (make_report(root, monkeypatch) / "pareto.png").is_file()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, "", "no eval/*.json there"),
        ("eval/a.json", "{", "a.json:1: not valid JSON"),
        ("eval/a.json", "[]", "a.json: not an evaluation"),
        ("eval/judge/a_vs_sft.json", '{"policy": "a"}', "a_vs_sft.json: not a judgement (has no 'baseline')"),
        ("policies/sft/metrics.jsonl", '{"step": 1}\nnonsense\n', "metrics.jsonl:2: not valid JSON"),
    ],
)
def test_bad_input(file, content, message, tmp_path: Path, monkeypatch, capsys):
    if file:
        write_run(tmp_path, "sft", (0.0, 0.0), ("help", "safe"))
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        run_main(report.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_mean_of_nothing(tmp_path: Path, monkeypatch, capsys):
    """Scores may be null, but not all of an objective that has a mean."""
    write_run(tmp_path, "sft", (0.0, 0.0), ("help", "safe"))
    path = tmp_path / "eval" / "sft.json"
    evaluation = json.loads(path.read_text())
    for row in evaluation["rows"]:
        row["scores"] |= {"help": None}
    path.write_text(json.dumps(evaluation))
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        run_main(report.main)
    assert "not an evaluation ('scores' of 'help' are null in all 'rows')" in capsys.readouterr().err
