"""Objectives that are functions, alone and beside a reward and a cost model, from training to the report."""

import json
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import AutoTokenizer

from examples.reward_functions import conciseness, format
from step3_gapo.arguments import parse_args
from step3_gapo.critics import critic_modules
from tests.helpers import STEP3, Workshop, flags, read_metrics, run_script
from tests.test_score_models import MESSAGES, RESPONSES, sample
from utils.models.loading import load_causal_lm
from utils.process.errors import UserError
from utils.scoring.objectives import Objective
from utils.scoring.scorers import FunctionScorer, Scored

NAMES = ["helpfulness", "harmlessness", "conciseness"]
CONCISENESS = "conciseness=examples.reward_functions:conciseness"
EVENNESS = "return [None if len(r) % 2 else len(r) for r in responses]"


def rule_file(folder: Path, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "rules.py"
    path.write_text(f"def rule(prompts, responses, messages):\n    {body}\n")
    return path


def test_the_examples_grade() -> None:
    """Values between 0 and 1 that tell better from worse, and worse from worst."""
    responses = ["Yes. Call her now.", "yes", "Well, " * 40 + "yes.", "", "Yes. yes. Yes. No."]
    concise, formed = (function(responses, responses) for function in (conciseness, format))
    assert concise[1] > concise[0] > concise[2] > concise[3] == 0
    assert formed[0] == 1 > formed[2] > formed[1] > formed[3] == 0
    assert formed[4] == pytest.approx(11 / 12 / 2)  # half of it is said again


def test_a_function_is_asked_for_texts_and_dialogues(workshop: Workshop, tmp_path: Path) -> None:
    """Its values are those of the last user turns, the responses and the dialogues; its critic starts at 0."""
    body = "return [len(p) + 100 * len(r) + 10000 * len(m) for p, r, m in zip(prompts, responses, messages)]"
    objective = Objective("rule", "function", f"{rule_file(tmp_path, body)}:rule")
    scorer = FunctionScorer(objective, objective.load_function())
    with mock.patch("utils.scoring.scorers.beat") as beat:  # else a slow one would be taken for a rank that is stuck
        scored = scorer.score(sample(AutoTokenizer.from_pretrained(workshop.base)), Namespace())["rule"]
    beat.assert_called_once_with("calling the function of rule")
    expected = [len(m[-1]["content"]) + 100 * len(r) + 10000 * len(m) for m, r in zip(MESSAGES, RESPONSES, strict=True)]
    assert scored.values.tolist() == expected and scored.truncated is None and scored.judged.tolist() == [1.0, 1.0]
    policy, args = load_causal_lm(str(workshop.base), "--actor_model"), parse_args(workshop.step3_flags("unused"))
    (critic,) = critic_modules(policy, args, ["rule"], [objective], [scorer])
    ids = torch.arange(5, 25).reshape(2, 10)
    assert not critic(ids, torch.ones_like(ids)).any()


def test_none_is_no_judgement_and_nan_no_number(workshop: Workshop, tmp_path: Path) -> None:
    responses = sample(AutoTokenizer.from_pretrained(workshop.base))

    def score(value: str) -> Scored:
        body = f"return [{value} if r == {RESPONSES[1]!r} else 2 for r in responses]"
        objective = Objective("rule", "function", f"{rule_file(tmp_path / value, body)}:rule")
        return FunctionScorer(objective, objective.load_function()).score(responses, Namespace())["rule"]

    scored = score("None")
    assert scored.values.tolist() == [2.0, 0.0] and scored.judged.tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="the value of the response to here:1 is nan, no finite float32"):
        score("float('nan')")


def test_the_source_is_part_of_a_run(workshop: Workshop, tmp_path: Path) -> None:
    """A run does not go on with another function under the same name; one that fails ends it in one line."""
    spec = f"rule={rule_file(tmp_path, 'return [len(r) for r in responses]')}:rule"
    options = {"reward_model": None, "cost_model": None, "reward_function": spec, "algorithm": "ppo", "max_steps": 1,
               "checkpoint_interval": 1, "keep_checkpoints": True, "reward_retry_wait": 0}  # fmt: skip
    metrics = read_metrics(workshop.step3("rule", **options))
    assert metrics[0]["reward/rule"] > 1 and metrics[0]["loss/critic/rule"] > 0
    rule_file(tmp_path, "return [2 * len(r) for r in responses]")
    changed = run_script(STEP3, workshop.step3_flags("rule", **options))
    assert changed.code == 2 and changed.stderr.count("\n") == 1
    assert "--reward_function rule contents" in changed.stderr
    # Once before there are models, and later.
    for body, again in (("return 1 / 0", {"dry_run": True}), ("return [1 / (len(responses) == 1)]", {"fresh": True})):
        rule_file(tmp_path, body)
        failed = run_script(STEP3, workshop.step3_flags("rule", **options, **again))
        assert failed.code == 2 and failed.stderr.count("\n") == 1
        for part in (f"--reward_function {spec}", "prompts.jsonl:", "ZeroDivisionError"):
            assert part in failed.stderr


@pytest.mark.slow
def test_three_objectives_from_training_to_the_report(workshop: Workshop, tmp_path: Path) -> None:
    """A reward model, a cost model and a function: gapo and p_gapo, responses, scores, and the page about them.

    There is a fourth objective, which does not judge every response.
    """
    root = workshop.folder / "three_objectives"
    run = {"reward_function": CONCISENESS, "output_dir": root / "policies/gapo_p1"}
    workshop.step3("gapo_p1", **run, ranks=2, score_scale="conciseness=5")
    preference = tuple(f"{name}={weight}" for name, weight in zip(NAMES, (0.5, 0.3, 0.2), strict=True))
    run |= {"output_dir": root / "policies/p_gapo_0.5", "algorithm": "p_gapo", "preference": preference}
    workshop.step3("p_gapo_0.5", **run)
    for policy in ("gapo_p1", "p_gapo_0.5"):
        for step in read_metrics(root / "policies" / policy):
            assert sum(step[f"alpha/{name}"] for name in NAMES) == pytest.approx(1)
            assert 0 < step["reward/conciseness"] <= 1 and step["reward_std/conciseness"] > 0
            assert -1 <= step["gradient/cosine/harmlessness_conciseness"] <= 1

    policies = {"sft": workshop.base} | {name: root / "policies" / name for name in ("gapo_p1", "p_gapo_0.5")}
    generated = run_script("eval/generate.py", flags(
        policy=tuple(f"{name}={path}" for name, path in policies.items()), reference_model=workshop.base,
        data=workshop.folder / "data/prompts_test.jsonl", max_new_tokens=12, output_dir=root / "eval",
    ))  # fmt: skip
    assert generated.code == 0, generated.stderr
    scored = run_script("eval/score.py", flags(
        responses=tuple(root / f"eval/responses/{name}.jsonl" for name in policies),
        reward_model=f"helpfulness={workshop.reward}", cost_model=f"harmlessness={workshop.cost}",
        reward_function=(CONCISENESS, f"evenness={rule_file(tmp_path, EVENNESS)}:rule"), output_dir=root / "eval",
    ))  # fmt: skip
    assert scored.code == 0, scored.stderr
    counts = []
    for name in policies:
        evaluation = json.loads((root / f"eval/{name}.json").read_text())
        texts = [row["response"] for row in evaluation["rows"]]
        assert [row["scores"]["conciseness"] for row in evaluation["rows"]] == conciseness(texts, texts)
        assert list(evaluation["objectives"]) == [*NAMES, "evenness"] and evaluation["harmless_ratio"] is not None
        assert [row["scores"]["evenness"] for row in evaluation["rows"]] == [
            None if len(text) % 2 else len(text) for text in texts
        ]
        even = [len(text) for text in texts if len(text) % 2 == 0]
        entry = evaluation["objectives"]["evenness"]
        assert entry["mean"] == pytest.approx(sum(even) / len(even)) and entry["judged"] == len(even) < len(texts)
        assert f"score evenness: judged {len(even)} of {len(texts)} responses of {name}" in scored.stdout
        counts.append(len(even))

    reported = run_script("eval/report.py", flags(input_dir=root))
    assert reported.code == 0, reported.stderr
    table = (root / "report/table1.csv").read_text().splitlines()
    assert all(name in table[0] for name in NAMES) and len(table) == 4
    results = json.loads((root / "report/results.json").read_text())
    assert list(results["reference_point"]["model"]) == [*NAMES, "evenness"]
    page = (root / "report/report.md").read_text()
    assert "shows the first" not in page and "Conciseness:" in page
    judged = "–".join(map(str, sorted({min(counts), max(counts)})))
    assert page.count("Not every response is judged") == 1
    assert f"of the responses of a run, evenness {judged} of {len(texts)}. Figures are over those." in page
