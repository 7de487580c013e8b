"""Binary judges in step 3: their verdicts by hand, and their shares in a run's figures."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from tests.helpers import STEP3, Workshop, flags, read_metrics, run_script
from utils.data.records import Prompt
from utils.process.errors import Problems, UserError
from utils.scoring.judges import ThresholdJudge, as_truth, judge
from utils.scoring.reward_functions import Retries
from utils.scoring.scorers import Scored
from utils.scoring.tasks import Task, asked_by_task
from utils.scoring.verdicts import Replies, all_verdicts

RULES = """
def even(prompts, responses):
    return [i % 2 == 0 for i in range(len(responses))]

def some(prompts, responses):
    return [None if i % 4 else False for i in range(len(responses))]

def nothing(prompts, responses):
    return [None] * len(responses)

def number(prompts, responses):
    return [1.0] * len(responses)
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.py").write_text(RULES)
    return tmp_path / "rules.py"


def replies(count: int) -> Replies:
    return Replies([Prompt([{"role": "user", "content": "Why?"}], "f:1")] * count, ["Because."] * count)


def test_verdicts_by_hand(rules: Path) -> None:
    """A response fails that any judge fails; where none judges it, it is not judged."""
    values, there = torch.tensor([1.0, -1.0, 0.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    scored = {"helpfulness": Scored(values, there)}
    judges = [judge("some", f"{rules}:some", [], Retries()), ThresholdJudge("helpful", "helpfulness", 0.0)]
    found = all_verdicts(judges, replies(5), scored)
    shown = {name: (verdict.passed.tolist(), verdict.judged.tolist()) for name, verdict in found.items()}
    assert shown == {
        "some": ([0, 0, 0, 0, 0], [1, 0, 0, 0, 1]),
        "helpful": ([1, 0, 1, 0, 1], [1, 1, 1, 0, 1]),
        "all": ([0, 0, 1, 0, 0], [1, 1, 1, 0, 1]),
    }
    assert all_verdicts([], replies(2), scored) == {}


def test_judges_are_asked_of_the_rows_of_their_tasks(rules: Path) -> None:
    """A function sees those rows alone; of a row that no judge is asked of nothing is said."""
    scored = {"helpfulness": Scored(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]), torch.ones(5))}
    judges = [judge("even", f"{rules}:even", [], Retries()), ThresholdJudge("helpful", "helpfulness", 0.0)]
    tasks = [Task("a", "", {}, ("even",)), Task("b", "", {}, ("even", "helpful")), Task("c", "", {})]
    asked = asked_by_task(tasks, ["b", "a", "c", "b", ""])
    assert asked == {"even": [True, True, False, True, False], "helpful": [True, False, False, True, False]}
    found = all_verdicts(judges, replies(5), scored, asked)
    shown = {name: (verdict.passed.tolist(), verdict.judged.tolist()) for name, verdict in found.items()}
    assert shown == {
        "even": ([1, 0, 0, 1, 0], [1, 1, 0, 1, 0]),  # of the three rows that it sees the first and the last
        "helpful": ([1, 0, 0, 0, 0], [1, 0, 0, 1, 0]),
        "all": ([1, 0, 0, 0, 0], [1, 1, 0, 1, 0]),
    }


def test_truth_values() -> None:
    assert [as_truth(value) for value in (True, False, numpy.bool_(True), None)] == [1.0, 0.0, 1.0, None]
    for value in (1, 0.0, "True", "", [], numpy.float64(1)):
        with pytest.raises(TypeError, match="is not True, False or None"):
            as_truth(value)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_pass_rates_are_logged(workshop: Workshop, rules: Path, ranks: int) -> None:
    judges = (f"even={rules}:even", f"none={rules}:nothing", "harmless=harmlessness:-1000", "never=helpfulness:1000")
    output = workshop.step3(f"judged_{ranks}", ranks, judge=judges[:3], max_steps=1)
    (step,) = read_metrics(output)
    assert (step["judge/even"], step["judge/harmless"], step["judge/all"]) == (0.5, 1.0, 0.5)
    assert "judge/none" not in step, "it has judged nothing"
    plain = workshop.step3(f"plain_{ranks}", ranks, max_steps=1)
    assert (plain / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    output = workshop.step3(f"judged_{ranks}", ranks, judge=judges, max_steps=1)
    assert read_metrics(output)[0]["judge/all"] == 0.0


@pytest.mark.slow
def test_instructions_of_prompts(workshop: Workshop, tmp_path: Path) -> None:
    """Prompts that ask for something that every, or no, response does; one that asks for nothing."""
    ask = lambda kind, **arguments: {"kind": kind, "arguments": arguments}
    asked = [[ask("at_most_words", count=1000)], [ask("at_least_words", count=1000)], None, []]
    rows = [{"prompt": f"What is {i}?"} | ({"instructions": asked[i % 4]} if i % 4 != 3 else {}) for i in range(16)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": data, "max_steps": 1, "per_device_prompt_batch_size": 16, "per_device_train_batch_size": 16}
    output = workshop.step3("instructed", judge=("obeys=instructions", "any=helpfulness:-1000"), **settings)
    (step,) = read_metrics(output)
    assert (step["judge/obeys"], step["judge/all"]) == (0.5, 0.75)  # 4 of 8 that are judged; 12 of 16
    for wrong, said in (([], "no row of --data has"), ([ask("rhymes")], "is no kind of instruction")):
        data.write_text(
            "".join(json.dumps({"prompt": f"What is {i}?", "instructions": wrong}) + "\n" for i in range(16))
        )
        result = run_script(STEP3, workshop.step3_flags("refused", judge="obeys=instructions", **settings))
        assert result.code == 2 and said in result.stderr, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "said"), [
    ("a={rules}:number", "no truth values for the responses"), ("a={rules}:missing", "missing"),
    ("a=wit:1", "no such objective"), ("all=helpfulness:1", "stands for all of them"),
])  # fmt: skip
def test_bad_judges_end_in_one_line(workshop: Workshop, rules: Path, spec: str, said: str) -> None:
    words = workshop.step3_flags("refused", judge=spec.format(rules=rules), max_steps=1)
    result = run_script(STEP3, words)
    assert result.code == 2 and said in result.stderr and "Traceback" not in result.stderr
    assert flags(judge="a=b:1") == ["--judge", "a=b:1"]


def test_a_name_given_twice() -> None:
    from utils.scoring.judges import judges_of

    none = dict.fromkeys(("judge_model", "judge_question", "judge_template", "judge_words"), [])
    args = SimpleNamespace(judge=[("a", "x:1"), ("a", "x:2")], reward_retries=0, reward_retry_wait=0.0, **none)
    problems = Problems(collecting=True)
    assert len(judges_of(args, ["x"], problems)) == 2 and problems.found == ["--judge a: is given twice"]
    with pytest.raises(UserError):
        judges_of(args, ["x"])
