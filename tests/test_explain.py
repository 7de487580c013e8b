"""`--explain`: what the attributes behind a gated score contributed, against the computation by hand."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from eval import score
from eval.reporting.sections.explanations import explanation_table, group_figures
from eval.reporting.seeds import group_runs
from eval.results.runs import Run
from tests.armorm import rows_by_hand, write_armorm
from tests.evaluations import noisy_run, write_runs
from tests.helpers import Result, Workshop, flags, run_script
from tests.test_chat import QUESTION, answers, greedy, in_terminal, talk, user
from tests.test_score_models import write_responses
from tests.test_turn_endings import ENDINGS
from utils.data.formats.rated import ARMORM
from utils.models.configs import load_tokenizer
from utils.scoring.armorm_format import GatedScores
from utils.scoring.objectives import Objective
from utils.scoring.scorers import load_row_scorer

MEAN = 0.3  # that a reward is centered by
Released = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A score model with a gate, and its heads."""
    folder = tmp_path_factory.mktemp("armorm") / "model"
    return folder, write_armorm(folder, ENDINGS["llama3"].tokenizer(), score_mean=MEAN)


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    """Responses of a run called sft."""
    return write_responses(tmp_path / "sft.jsonl")


def flags_of(folder: Path) -> dict[str, Any]:
    """Two objectives with a gate, of either sign, and one without, of one model."""
    return {"reward_model": (f"helpful={folder}", f"style={folder}"), "cost_model": f"harm={folder}",
            "score_label": "style=code-style"}  # fmt: skip


def score_command(responses: Path, **changes: Any) -> Result:
    result = run_script("eval/score.py", flags(responses=responses, output_dir=responses.parent / "eval", **changes))
    assert result.code == 0 and not result.stderr, result.stderr
    return result


def result_of(responses: Path) -> dict[str, Any]:
    return json.loads((responses.parent / "eval" / responses.with_suffix(".json").name).read_text())


def read_rows(responses: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in responses.read_text().splitlines()]


def contributions_by_hand(released: Released, rows: list[dict[str, Any]]) -> numpy.ndarray:
    """[rows, attributes], to the score."""
    return numpy.stack([contributions for _, _, contributions in rows_by_hand(*released, rows)])


def most(parts: numpy.ndarray, count: int) -> list[tuple[str, float]]:
    """The largest of a row's contributions by absolute value."""
    return [(ARMORM[k], parts[k]) for k in numpy.argsort(-numpy.abs(parts))[:count]]


# --- eval/score.py


def test_contributions_of_rows_and_of_the_run(released: Released, responses: Path) -> None:
    """To the value, a cost's with its sign changed; scores are the very same as without the flag."""
    score_command(responses, **flags_of(released[0]))
    plain = result_of(responses)
    assert "explanations" not in plain and "explanations" not in plain["rows"][0]
    score_command(responses, **flags_of(released[0]), explain=2)
    result, parts = result_of(responses), contributions_by_hand(released, read_rows(responses))
    assert list(result["explanations"]) == ["helpful", "harm"]
    for name, sign, offset in (("helpful", 1, -MEAN), ("harm", -1, 0.0)):
        for row, wanted in zip(result["rows"], sign * parts, strict=True):
            (names, found), (same, values) = (
                zip(*x, strict=True) for x in (row["explanations"][name], most(wanted, 2))
            )
            assert names == same and found == pytest.approx(values, abs=1e-5)
            assert row["scores"][name] == pytest.approx(wanted.sum() + offset, abs=1e-5)
        means = result["explanations"][name]
        assert list(means) == list(ARMORM)
        assert [e["mean"] for e in means.values()] == pytest.approx(sign * parts.mean(axis=0), abs=1e-5)
        ci95 = 1.96 * parts.std(axis=0, ddof=1) / len(parts) ** 0.5
        assert [e["ci95"] for e in means.values()] == pytest.approx(ci95, abs=1e-5)
    without = [{key: value for key, value in row.items() if key != "explanations"} for row in result["rows"]]
    assert without == plain["rows"] and result["objectives"] == plain["objectives"]


def test_the_model_runs_once_a_dialogue(released: Released, responses: Path, monkeypatch) -> None:
    passes, original = [], GatedScores.rewards_and_gate
    monkeypatch.setattr(GatedScores, "rewards_and_gate", lambda *args: passes.append(1) or original(*args))
    objectives = [Objective("a", "reward", str(released[0])), Objective("b", "cost", str(released[0]))]
    scored = load_row_scorer(objectives, explain=True)(read_rows(responses))
    assert len(passes) == len(scored.truncated) == 2 and list(scored.contributions) == ["a", "b"]


def test_what_is_kept_and_what_is_scored_again(released: Released, responses: Path) -> None:
    """Explanations stay with their scores; scores without them, or with fewer than asked for, are scored again."""
    kept = {"helpful": 0, "harm": 0, "style": 0}  # contributions a row

    def ask(explain: int | bool | None, shown: int, *again: str) -> bytes:
        said = score_command(responses, **flags_of(released[0]), explain=explain).stdout
        for name in kept:
            assert (f"score {name}: 1 of 1 runs have scores" in said) == (name not in again), (explain, name, said)
        row = result_of(responses)["rows"][0]
        assert [len(each) for each in row.get("explanations", {}).values()] == [shown] * (2 if shown else 0)
        return (responses.parent / "eval/sft.json").read_bytes()

    ask(None, 0, *kept)
    first = ask(True, 3, "helpful", "harm")
    assert ask(None, 3) == ask(True, 3) == first
    ask(1, 1)
    assert ask(True, 3, "helpful", "harm") == first
    everything = ask(99, 19, "helpful", "harm")
    assert ask(99, 19) == everything
    spoiled = json.loads(everything)
    del spoiled["rows"][1]["explanations"]
    (responses.parent / "eval/sft.json").write_text(json.dumps(spoiled))
    assert ask(99, 19, *kept) == everything


def test_a_killed_run_leaves_its_explanations(released: Released, responses: Path, monkeypatch, capsys) -> None:
    """The parts of a run that did not come to its result are taken as results are."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def killed(**changes: Any) -> str:
        arguments = flags(**flags_of(released[0]), responses=responses, output_dir=responses.parent / "eval", **changes)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(sys, "argv", ["eval/score.py", *arguments])
            patched.setattr(score, "write_json", interrupted)
            score.main()
        return capsys.readouterr().out

    assert "have scores" not in killed()
    said = killed(explain=True)
    assert "score style: 1 of 1 runs have scores" in said and "score helpful: 1 of 1" not in said
    assert killed(explain=True).count("1 of 1 runs have scores") == 3
    assert score_command(responses, **flags_of(released[0])).stdout.count("1 of 1 runs have scores") == 3
    assert len(result_of(responses)["rows"][1]["explanations"]["harm"]) == 3


def test_a_note_where_there_is_nothing_to_explain(workshop: Workshop, released: Released, responses: Path) -> None:
    """Once, if no objective has a gate whose score it takes; the scores are as ever."""
    settings = {"reward_model": (f"useful={workshop.reward}", f"style={released[0]}"), "score_label": "style=3"}
    said = score_command(responses, **settings, explain=True).stdout
    note = "note: --explain: nothing to explain of useful, style: no model's gate makes a score of several attributes"
    assert [line for line in said.splitlines() if line.startswith("note:")] == [note]
    assert "explanations" not in result_of(responses)
    assert "note:" not in score_command(responses, **flags_of(released[0]), explain=True).stdout
    ended = talk("Hi\n", policy=f"base={workshop.base}", explain=True)
    assert ended.stdout.count("note: --explain: nothing to explain without objectives: ") == 1


def test_flags_and_files_take_it(released: Released, responses: Path, tmp_path: Path) -> None:
    """With or without a number, in a file of flags, too, and in what eval/check.py reads."""
    for content, shown in (({"explain": True}, 3), ({"explain": 5}, 5), ({"explain": False}, 5)):
        (tmp_path / "flags.json").write_text(json.dumps(content))
        score_command(responses, reward_model=f"helpful={released[0]}", config=tmp_path / "flags.json")
        assert len(result_of(responses)["rows"][0]["explanations"]["helpful"]) == shown
    command = "eval/score.py --responses x.jsonl --reward_model a=b --explain{} --output_dir y"
    for word, code, said in (("", 0, ""), (" 4", 0, ""), (" 0", 2, "--explain"), (" some", 2, "--explain")):
        checked = run_script("eval/check.py", [command.format(word)])
        assert checked.code == code and said in checked.stderr, checked.stderr


def test_attributes_of_one_name_are_told_apart(tmp_path: Path, responses: Path) -> None:
    labels = {str(index): f"quality {index % 18}" for index in range(19)}
    heads = write_armorm(tmp_path / "model", ENDINGS["llama3"].tokenizer(), id2label=labels)
    score_command(responses, reward_model=f"a={tmp_path / 'model'}", explain=True)
    names = ["quality 0 (0)", *(f"quality {index}" for index in range(1, 18)), "quality 0 (18)"]
    means = result_of(responses)["explanations"]["a"]
    wanted = contributions_by_hand((tmp_path / "model", heads), read_rows(responses)).mean(axis=0)
    assert list(means) == names and [e["mean"] for e in means.values()] == pytest.approx(wanted, abs=1e-5)


# --- eval/chat.py


def test_answers_say_why(workshop: Workshop, released: Released) -> None:
    """A line an objective with a gate, under the values; none without the flag."""
    settings = {"policy": f"base={workshop.base}", **flags_of(released[0])}
    shown = answers(talk(f"{QUESTION}\n", **settings, explain=4).stdout, "base")[0]
    ids = greedy(workshop.base, [user(QUESTION)])
    tokenizer = load_tokenizer(str(workshop.base), "")
    row = {"messages": [user(QUESTION)], "response": tokenizer.decode(ids, skip_special_tokens=True),
           "finished": ids[-1] == tokenizer.eos_token_id}  # fmt: skip
    [parts] = contributions_by_hand(released, [row])
    values, *reasons = shown.splitlines()[-3:]
    assert re.search(r"\[helpful [+-]\d+\.\d\d · style [+-]\d+\.\d\d · harm [+-]\d+\.\d\d\]", values)
    for line, name, sign in zip(reasons, ("helpful", "harm"), (1, -1), strict=True):
        wanted = most(sign * parts, 4)
        decimals = 2 if abs(wanted[0][1]) >= 0.1 else 3
        told = " · ".join(f"{attribute} {value:+.{decimals}f}" for attribute, value in wanted)
        assert line.strip() == f"why {name}: {told}"
    assert "why" not in talk(f"{QUESTION}\n", **settings).stdout


def test_answers_say_why_in_columns(workshop: Workshop, released: Released) -> None:
    settings = {"policy": (f"base={workshop.base}", f"again={workshop.base}"), "reward_model": f"helpful={released[0]}"}
    shown = in_terminal(f"{QUESTION}\n/quit\n", flags(**settings, max_new_tokens=4, explain=1), 120)
    assert re.search(r"why helpful: [\w-]+ [+-]\d.*│.*why helpful: [\w-]+ [+-]\d", shown)


# --- eval/report.py


def explained(name: str, means: dict[str, dict[str, float]]) -> Run:
    run = noisy_run(name, (0.5, 1.0))
    found = {o: {a: {"mean": mean, "ci95": 0.004} for a, mean in each.items()} for o, each in means.items()}
    return Run(run.name, run.evaluation | ({"explanations": found} if found else {}), run.metrics)


def report_of(root: Path) -> str:
    result = run_script("eval/report.py", flags(input_dir=root, samples=1))
    assert result.code == 0 and not result.stderr, result.stderr
    return (root / "report/report.md").read_text()


def test_report_of_scored_runs(released: Released, tmp_path: Path) -> None:
    """From responses to the page: a table and a picture, the figures in results.json."""
    for name in ("sft", "gapo_p1"):
        responses = write_responses(tmp_path / f"{name}.jsonl")
        responses.write_text(responses.read_text().replace("Mix", "Fix" if name == "sft" else "Nix"))
        score_command(responses, **flags_of(released[0]), explain=True)
    text = report_of(tmp_path)
    section = text[text.index("## What the attributes contribute") :].split("\n## ")[0]
    results = json.loads((tmp_path / "report/results.json").read_text())["runs"]
    means = {name: result_of(tmp_path / f"{name}.jsonl")["explanations"] for name in ("sft", "gapo_p1")}
    assert {name: entry["explanations"] for name, entry in results.items()} == means and means["sft"] != means[
        "gapo_p1"
    ]
    for objective in ("helpful", "harm"):
        table = section[section.index(f"### {objective}") :]
        largest = max(ARMORM, key=lambda a, o=objective: max(abs(each[o][a]["mean"]) for each in means.values()))
        first = table.split("| --- |")[1].splitlines()[1]
        cells = [float(x.replace("−", "-")) for x in re.findall(r"[−\d.]+(?= ±)", first)]
        assert first.split("|")[1].strip().replace("\\", "") == largest
        assert cells == pytest.approx([each[objective][largest]["mean"] for each in means.values()], abs=0.006)
    page = (tmp_path / "report/report.html").read_text()
    assert "19 attributes of 2 policies as a table" in page and 'alt="Mean contributions of the attributes"' in page
    assert (tmp_path / "report/explanations.png").stat().st_size > 5000


def test_report_with_gaps(tmp_path: Path) -> None:
    """Seeds, a condition, runs and objectives without explanations, attributes that some runs lack; or none at all."""
    a, b = {"wit": 0.5, "tact": -0.2}, {"wit": 0.7, "depth": 0.1}
    runs = [explained("sft", {"help": a, "harm": a}), explained("gapo_p1", {"help": a}),
            explained("gapo_p1#43", {"help": b, "harm": b}), explained("mgda", {}),
            explained("gapo_p1@x", {"harm": b})]  # fmt: skip
    [_, group, *_] = group_runs(runs)
    assert group_figures(group, "help") == {"wit": (pytest.approx(0.6), pytest.approx(0.02**0.5))}
    assert group_figures(group, "harm") == {}
    figures = {each.name.text: group_figures(each, "help") for each in group_runs(runs[:3])}
    table = explanation_table(figures, group_runs(runs[:3]))
    assert [(row.label, [cell.text for cell in cells]) for row, cells in table.rows] == [
        ("wit", ["0.500 ± 0.004", "0.600 ± 0.141"]), ("tact", ["−0.200 ± 0.004", "–"])
    ]  # fmt: skip
    text = report_of(write_runs(tmp_path / "some", runs))
    assert "(explanations.png)" in text and "(explanations_x.png)" in text
    root = write_runs(tmp_path / "none", [explained("sft", {}), explained("mgda", {"harm": {}})])
    assert "What the attributes" not in report_of(root) and not (root / "report/explanations.png").exists()
