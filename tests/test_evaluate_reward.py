"""step2_reward/evaluate.py: figures against numpy and by hand; its command line, with score models and functions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from step2_reward import accuracy, calibration
from step2_reward.evaluate import evaluate
from step2_reward.evaluation_output import console_lines, page, picture
from step2_reward.rewardbench import SECTIONS
from tests.bad_inputs import edit_json
from tests.helpers import Result, Workshop, flags, run_script
from utils.data.encoding import encode_dialogue
from utils.data.loading import load_view
from utils.data.subsets import SubsetPair, SubsetView
from utils.process.errors import UserError
from utils.scoring.objectives import Objective

NAN = numpy.nan
# Values are the first word of a reply, "?" is none of them; `backwards` holds the worse reply for the better one.
FUNCTIONS = """
def first_word(prompts, responses):
    return [None if r.startswith("?") else float(r.split()[0]) for r in responses]

def backwards(prompts, responses):
    return [-float(r.split()[0].replace("?", "9")) for r in responses]

def logged(prompts, responses):
    with open(__file__ + ".log", "a") as file:
        file.writelines(f"{p}|{r}\\n" for p, r in zip(prompts, responses))
    return first_word(prompts, responses)

def silent(prompts, responses):
    return [None] * len(responses)
"""
# subset of RewardBench: (chosen, rejected) of its pairs; what `first_word` orders rightly: 2/3, 1.5/2, 1/2, 1/4, 1/1
BENCHMARK = {
    "hep-cpp": ["2 1", "1 2", "1 2", "0 2"],
    "alpacaeval-easy": ["3 1", "5 4", "0 1"],
    "mt-bench-med": ["1 0", "7 7"],
    "donotanswer": ["1 0", "? 0"],
    "math-prm": ["2 1", "1 2"],
}
EXPECTED = {
    "Chat": (100 * 2 / 3 + 40 * 0.75) / 140,
    "Safety": 1.0,
    "Reasoning": (984 * 0.5 + 164 * 0.25) / 1148,
}  # Chat Hard has no subset there


# --- pure functions


def test_resamplings_are_numpys_and_stay_in_their_strata() -> None:
    strata = numpy.array([2, 0, 2, 1, 2, 0])
    draws = list(calibration.resamplings(6, 3, strata))
    assert len(draws) == calibration.RESAMPLES and len({tuple(draw) for draw in draws}) > 100
    for draw in draws:
        assert numpy.bincount(strata[draw]).tolist() == [2, 1, 3]
    drawn = numpy.bincount(numpy.concatenate(draws), minlength=6) / len(draws)
    assert drawn == pytest.approx(numpy.ones(6), abs=0.12)  # every row as often as any other of its stratum
    generator = numpy.random.default_rng(3)
    for draw in calibration.resamplings(6, 3):
        assert (draw == generator.integers(6, size=6)).all()


def test_bootstrap_intervals_are_those_of_theory() -> None:
    generator = numpy.random.default_rng(0)
    strata = numpy.repeat([0, 1], [900, 300])
    values = generator.normal(size=1200) + 5 * strata
    half = 1.96 * values.std() / 1200**0.5
    low, high = calibration.bootstrap_interval(numpy.mean, (values,), 1)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    inside = 1.96 * numpy.sqrt(0.75 * values[:900].var() + 0.25 * values[900:].var()) / 1200**0.5
    low, high = calibration.bootstrap_interval(numpy.mean, (values,), 1, strata)
    assert (low, high) == pytest.approx((values.mean() - inside, values.mean() + inside), abs=0.1 * inside)
    # Arrays are drawn together, a statistic may be several numbers, and one that is none leaves its draw out.
    both = calibration.bootstrap_interval(lambda x, y: numpy.stack([(x - y).mean(), x.std()]), (values, values), 1)
    assert both[:, 0].tolist() == [0, 0] and both[0, 1] < values.std() < both[1, 1]
    rare = lambda x: x.mean() if x.max() else NAN
    assert calibration.bootstrap_interval(rare, (numpy.array([0.0, 1.0]),), 1).tolist() == [0.5, 1.0]


def test_the_calibration_error_has_the_basic_interval() -> None:
    generator = numpy.random.default_rng(0)
    probabilities = generator.random(200)
    outcomes = (generator.random(200) < probabilities**2).astype(float)
    generator, resampled = numpy.random.default_rng(7), []
    for _ in range(calibration.RESAMPLES):
        draw = generator.integers(200, size=200)
        resampled.append(calibration.calibration_error(probabilities[draw], outcomes[draw]))
    figures = calibration.calibration(probabilities, outcomes, 0.0, seed=7)
    expected = 2 * figures["error"] - numpy.quantile(resampled, [0.975, 0.025])
    assert figures["ci95"] == pytest.approx(expected.tolist())


def test_the_sections_of_rewardbench() -> None:
    """23 subsets, whose examples are 2985 but for math-prm's, which has 447 and weighs as much as six of code."""
    sizes = {section: sum(counts.values()) for section, counts in SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 6 * 164}
    assert sum(sizes.values()) - 984 + 447 == 2985 and sum(map(len, SECTIONS.values())) == 23


def test_averages_over_subsets() -> None:
    names, codes = accuracy.group_pairs(["maths", "", "hep-go", "maths", "math-prm"])
    assert names == ["math-prm", "hep-go", "maths", "(none)"] and codes.tolist() == [2, 3, 1, 2, 0]
    assert accuracy.group_pairs(["", ""]) == (["all"], pytest.approx([0, 0]))
    weights = accuracy.average_weights(names, numpy.array([5, 1, 9, 9]))
    reasoning = [984 / 1148, 164 / 1148, 0, 0]
    assert weights.keys() == {"RewardBench score", "Reasoning"}
    assert weights["Reasoning"].tolist() == weights["RewardBench score"].tolist() == pytest.approx(reasoning)
    assert accuracy.average_weights(names, numpy.array([0, 1, 9, 9]))["Reasoning"].tolist() == [0, 1, 0, 0]
    others = accuracy.average_weights(["a", "b", "c"], numpy.array([7, 0, 1]))
    assert {name: weight.tolist() for name, weight in others.items()} == {"mean of subsets": [0.5, 0, 0.5]}
    assert accuracy.average_weights(["a", "b"], numpy.array([7, 0])) == {}


def test_figures_of_a_model_and_of_two() -> None:
    names, codes = ["a", "b", "c"], numpy.array([0, 0, 0, 0, 1, 1, 2])
    values = numpy.array([[1, 0], [1, 0], [0, 1], [2, 2], [1, 0], [NAN, 0], [0, NAN]], dtype=float)
    found = accuracy.accuracies(values, codes, names, seed=0)
    assert (found["pairs"], found["not_judged"], found["ties"]) == (5, 2, 1)
    assert {name: (entry["mean"], entry["count"], entry["ties"]) for name, entry in found["subsets"].items()} == {
        "a": (2.5 / 4, 4, 1),
        "b": (1.0, 1, 0),
    }
    averages = found["averages"]
    assert averages["all pairs"]["mean"] == pytest.approx(3.5 / 5) and averages["all pairs"]["count"] == 5
    assert averages["mean of subsets"]["mean"] == pytest.approx((2.5 / 4 + 1) / 2)
    # b's single pair is always drawn: half of a's interval, by a bootstrap written out
    generator = numpy.random.default_rng(1)
    means = [generator.choice([1, 1, 0, 0.5], 4).mean() for _ in range(4000)]
    expected = 0.5 + numpy.quantile(means, [0.025, 0.975]) / 2
    assert averages["mean of subsets"]["ci95"] == pytest.approx(expected.tolist(), abs=0.07)

    other = numpy.array([[0, 1], [1, 0], [1, 0], [NAN, 0], [1, 1], [1, 0], [1, 0]], dtype=float)
    differences = accuracy.accuracy_differences(values, other, codes, names, seed=0)
    assert differences["all pairs"]["mean"] == pytest.approx(
        (1 + 0 - 1 + 0.5) / 4
    )  # both judge the first three and b's
    assert differences["all pairs"]["count"] == 4
    assert differences["mean of subsets"]["mean"] == pytest.approx((0 + 0.5) / 2)
    assert accuracy.accuracy_differences(values, numpy.full((7, 2), NAN), codes, names, seed=0) == {}
    assert accuracy.accuracies(numpy.full((7, 2), NAN), codes, names, seed=0)["averages"] == {}


def test_values_of_models_alone_have_a_calibration_error() -> None:
    """Of those that score on the scale of Bradley and Terry: no functions, no single label of several."""
    objectives = [
        Objective("cost", "cost", "c"),
        Objective("label", "reward", "l", "1"),
        Objective("f", "function", "x"),
    ]
    values = numpy.array([[2.0, 1.0], [0.0, NAN], [1.0, 3.0]])
    columns = {"cost": numpy.nan_to_num(values), "label": values, "f": values}
    found = evaluate(objectives, ["", "", ""], columns, dict.fromkeys(columns, 0), seed=5)
    assert {name for name, figures in found["models"].items() if "calibration" in figures} == {"cost"}
    assert [entry["pairs"] for entry in found["differences"]] == [2, 2]
    with pytest.raises(UserError, match="no objective judges both"):
        evaluate(objectives[1:], ["", ""], {"label": values[1:2], "f": values[1:2]}, {"label": 0, "f": 0}, seed=5)


def test_pairs_keep_their_subset(tmp_path: Path) -> None:
    """Rows of every format; what is neither text nor a number is a mistake."""
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in ("Yes.", "No.")]
    hh = {name: f"\n\nHuman: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    pku = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    rows = [{"chosen": chats[0], "rejected": chats[1], "subset": " x "}, hh | {"subset": 3}, pku | {"subset": None}]
    rows += [pku | {"subset": 2.0, "is_response_0_safe": True, "is_response_1_safe": False}, hh]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    pairs, summary = load_view(str(file), SubsetView(SubsetPair, "safer"))
    assert [pair.subset for pair in pairs] == ["x", "3", "", "2", ""] and len(summary.sources[0].formats) == 3
    assert [pair.chosen for pair in pairs[2:4]] == ["a", "a"] and pairs[3].chosen_safe is True
    better, _ = load_view(str(file), SubsetView(SubsetPair, "better", field="no_such"))
    assert better[2].chosen == "b" and not any(pair.subset for pair in better)
    write_rows(file, [hh | {"subset": ["x"]}])
    with pytest.raises(UserError, match=r"rows.jsonl:1: the field 'subset' must be text or a number, found \['x'\]"):
        load_view(str(file), SubsetView(SubsetPair, "better"))


@pytest.mark.parametrize(("models", "subsets"), [(1, 1), (7, 60)])
def test_pages_and_pictures_of_few_and_many(models: int, subsets: int, recwarn: pytest.WarningsRecorder) -> None:
    """Names are inert, and no more than the largest subsets are shown where there is no room."""
    generator = numpy.random.default_rng(0)
    codes = numpy.repeat(numpy.arange(subsets), numpy.arange(2, subsets + 2))
    names = [f"subset |{index} $x^" for index in range(subsets)]
    entries = {}
    for index in range(models):
        values = generator.integers(3, size=(len(codes), 2)).astype(float)
        figures = accuracy.accuracies(values, codes, names, seed=0)
        entries[f"model |{index} $x_" + "y" * 50] = figures | {"truncated": 0}
    evaluation = {
        "args": {"data": "pairs.jsonl", "preference_label": "better"}, "pairs": len(codes), "differences": [],
        "models": entries, "subsets": dict(zip(names, numpy.bincount(codes).tolist(), strict=True)),
    }  # fmt: skip
    markdown, lines = page(evaluation), console_lines(evaluation)
    rows = [line for line in markdown.splitlines() if line.startswith("| subset \\|")]
    assert len(rows) == (subsets if subsets > 1 else 0) and r"model \|0 \$x\_y" in markdown
    assert ("and 20 smaller subsets" in lines) == (subsets == 60)
    assert sum(line.startswith("subset |") for line in lines) == min(subsets if subsets > 1 else 0, 40)
    assert picture(evaluation).startswith(b"\x89PNG") and not recwarn.list


# --- the command line


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def benchmark_rows() -> list[dict[str, Any]]:
    """BENCHMARK in the layout of RewardBench."""
    return [
        {"prompt": f"{subset} {number}?", "chosen": f"{values.split()[0]} good", "chosen_model": "someone",
         "rejected": f"{values.split()[1]} bad", "rejected_model": "else", "subset": subset, "id": number}
        for subset, pairs in BENCHMARK.items() for number, values in enumerate(pairs)
    ]  # fmt: skip


def run(folder: Path, **values: Any) -> Result:
    return run_script("step2_reward/evaluate.py", flags(output_dir=folder / "out", **values))


def evaluated(folder: Path, **values: Any) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """What the command leaves: evaluation.json, what it printed, scores.jsonl."""
    result = run(folder, **values)
    assert result.code == 0, result.stdout + result.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "accuracy.png", "evaluation.json", "evaluation.md", "scores.jsonl"]  # fmt: skip
    scores = (folder / "out/scores.jsonl").read_text().splitlines()
    return json.loads((folder / "out/evaluation.json").read_text()), result.stdout, list(map(json.loads, scores))


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    file = tmp_path / "functions.py"
    file.write_text(FUNCTIONS)
    return file


@pytest.mark.slow
def test_functions_on_the_layout_of_rewardbench(tmp_path: Path, functions: Path) -> None:
    data = write_rows(tmp_path / "bench.jsonl", benchmark_rows())
    chosen = tuple(f"{name}={functions}:{name}" for name in ("first_word", "backwards"))
    evaluation, said, scores = evaluated(tmp_path, reward_function=chosen, data=data, batch_size=1)
    assert list(evaluation["subsets"].items()) == [
        ("alpacaeval-easy", 3), ("mt-bench-med", 2), ("donotanswer", 2), ("math-prm", 2), ("hep-cpp", 4)
    ]  # fmt: skip
    found = evaluation["models"]["first_word"]
    assert (found["pairs"], found["not_judged"], found["ties"], found["truncated"]) == (12, 1, 1, 0)
    means = {name: entry["mean"] for name, entry in found["averages"].items()}
    expected = {"all pairs": 6.5 / 12, "RewardBench score": sum(EXPECTED.values()) / 3, **EXPECTED}
    assert means == pytest.approx(expected) and list(means) == list(expected)
    assert found["averages"]["Chat"]["count"] == 5 and "calibration" not in found
    # of what both judge, the other one orders rightly what this one does not: an accuracy a less 1 - a
    (difference,) = evaluation["differences"]
    assert (difference["model"], difference["other"]) == ("first_word", "backwards")
    assert {name: entry["mean"] for name, entry in difference["averages"].items()} == pytest.approx(
        {name: 2 * mean - 1 for name, mean in expected.items()}
    )
    assert evaluation["models"]["backwards"]["subsets"]["donotanswer"]["count"] == 2
    assert scores[0] == {
        "source": f"{data}:1", "subset": "hep-cpp",
        "scores": {"first_word": {"chosen": 2, "rejected": 1}, "backwards": {"chosen": -2, "rejected": -1}},
    }  # fmt: skip
    assert [row["scores"]["first_word"]["chosen"] for row in scores].count(None) == 1
    page = (tmp_path / "out/evaluation.md").read_text()
    assert "alpacaeval-hard, mt-bench-easy, mt-bench-hard" in page and "| Reasoning |" in page
    assert "Reasoning" in said and "first_word over" in said and "1 judged" in said and "ETA" in said
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    evaluated(tmp_path, reward_function=chosen, data=data, batch_size=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.slow
def test_a_score_model_as_a_reward_and_as_a_cost(workshop: Workshop, tmp_path: Path, functions: Path) -> None:
    """Values are those of plain transformers; a cost is better when low; without subsets there is one of all pairs."""
    rows = [
        {"prompt": f"How do I fix my bike {'again ' * (index % 5)}?", "chosen": f"{index} Wait a while. " * 3,
         "rejected": f"{index % 7} No."} for index in range(23)
    ]  # fmt: skip
    arguments = {"data": write_rows(tmp_path / "pairs.jsonl", rows), "batch_size": 2, "seed": 3,
                 "reward_model": f"up={workshop.reward}", "cost_model": f"down={workshop.reward}",
                 "reward_function": f"logged={functions}:logged"}  # fmt: skip
    evaluation, said, scores = evaluated(tmp_path, **arguments)
    model = AutoModelForSequenceClassification.from_pretrained(workshop.reward)
    tokenizer = AutoTokenizer.from_pretrained(workshop.reward)
    expected = numpy.empty((23, 2))
    for index, row in enumerate(rows):
        for side, name in enumerate(("chosen", "rejected")):
            ids = encode_dialogue(tokenizer, [{"role": "user", "content": row["prompt"]}], row[name], True)
            with torch.no_grad():
                expected[index, side] = model(torch.tensor([ids])).logits.item()
    up, down = (
        numpy.array([list(row["scores"][name].values()) for row in scores]) for name in ("up", "down")
    )  # fmt: skip
    assert up == pytest.approx(expected - 0.3, abs=1e-5) and down == pytest.approx(-expected, abs=1e-5)
    rightly = (expected[:, 0] > expected[:, 1]).mean()
    assert 0.1 < rightly < 0.9, "a case that tells better from worse"
    models = evaluation["models"]
    assert [models[name]["averages"]["all pairs"]["mean"] for name in ("up", "down")] == pytest.approx(
        [rightly, 1 - rightly]
    )
    assert [list(models["up"]["averages"]), list(evaluation["subsets"])] == [["all pairs"], ["all"]]
    assert [entry["other"] for entry in evaluation["differences"]] == ["down", "logged"]
    assert models["up"]["calibration"] == calibration.pair_calibration(*up.T, seed=3)
    assert "calibration" not in models["logged"] and "calibration error" in said
    assert said.count("score up, down 6/6") == 1  # one pass of the model for both
    log = Path(f"{functions}.log").read_text().splitlines()
    assert len(set(log)) == len(log) - 1  # every response once, the first one before models load, too


@pytest.mark.slow
def test_groups_of_ones_own_shared_responses_and_what_does_not_fit(workshop: Workshop, tmp_path: Path) -> None:
    texts = ["No.", "Yes.", "Wait a while and ask a friend how to bake the bread."]
    rows = [{"prompt": "Why?", "chosen": texts[a], "rejected": texts[b], "topic": topic}
            for a, b, topic in ((0, 1, "x"), (1, 2, "y"), (2, 0, "y"), (0, 2, ""))]  # fmt: skip
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(workshop.reward)
    lengths = [len(encode_dialogue(tokenizer, [{"role": "user", "content": "Why?"}], text, True)) for text in texts]
    short = Path(shutil.copytree(workshop.reward, tmp_path / "short"))
    edit_json(short / "config.json", {"max_position_embeddings": max(lengths) - 1})
    arguments = {"reward_model": f"short={short}", "data": data, "subset_field": "topic"}
    evaluation, _, scores = evaluated(tmp_path, **arguments)
    assert evaluation["subsets"] == {"x": 1, "y": 2, "(none)": 1}
    assert evaluation["models"]["short"]["truncated"] == 3 and list(evaluation["models"]["short"]["averages"]) == [
        "all pairs", "mean of subsets"]  # fmt: skip
    assert scores[0]["scores"]["short"]["chosen"] == scores[2]["scores"]["short"]["rejected"]
    spread, _, scores = evaluated(tmp_path, **arguments, max_pairs=2)
    assert spread["pairs"] == 2 and [row["source"] for row in scores] == [f"{data}:1", f"{data}:3"]


@pytest.mark.slow
def test_a_cost_alone_is_judged_by_what_is_safer(workshop: Workshop, tmp_path: Path, functions: Path) -> None:
    row = {"prompt": "Why?", "response_0": "0 a", "response_1": "1 b", "better_response_id": 1, "safer_response_id": 0}
    data = write_rows(tmp_path / "pairs.jsonl", [row, row | {"response_1": "2"}])
    evaluation, _, _ = evaluated(tmp_path, cost_model=f"harm={workshop.cost}", data=data)
    assert evaluation["args"]["preference_label"] == "safer"
    function = f"word={functions}:first_word"
    for label, right in ((None, 1.0), ("better", 1.0), ("safer", 0.0)):
        evaluation, _, _ = evaluated(tmp_path, reward_function=function, data=data, preference_label=label)
        assert evaluation["models"]["word"]["averages"]["all pairs"]["mean"] == right
    silent = run(tmp_path, reward_function=f"silent={functions}:silent", data=data)
    assert (silent.code, silent.stderr.count("\n")) == (2, 1) and "judges both responses of any pair" in silent.stderr
