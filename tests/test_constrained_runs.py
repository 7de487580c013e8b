"""CGPO through the command line: whole runs, reference answers, runs that are killed, evaluation and report."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cases import cases
from tests.helpers import STEP3, Workshop, flags, read_metrics, read_weights, run_killed, run_script
from tests.test_resume import assert_same_run, metrics_lines

pytestmark = pytest.mark.slow

RULES = """
def short(prompts, responses):
    return [len(response) % 3 > 0 for response in responses]

def none(prompts, responses):
    return [False] * len(responses)

def mine(prompts, responses):

    return [None if len(response) % 2 else True for response in responses]
"""
TASKS = {
    "howto": {"prompts": {"risky": False}, "objectives": {"helpfulness": 1, "harmlessness": 0.5}, "judges": ["short"]},
    "risky": {"prompts": {"risky": True}, "objectives": "harmlessness", "judges": ["safe", "mine"], "responses": 2,
              "kl_max": 5, "weight": 3},
}  # fmt: skip
LOSSES = ("crpg", "crraft", "codpo")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for rules.py and tasks.json."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rules.py").write_text(RULES)
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


def settings(folder: Path, loss: str, **changes: Any) -> dict[str, Any]:
    """A run of two tasks with three and with two responses."""
    rules = folder / "rules.py"
    return {
        "policy_loss": loss, "algorithm": "cgpo", "tasks": folder / "tasks.json", "responses_per_prompt": 3,
        "judge": (f"short={rules}:short", f"mine={rules}:mine", "safe=harmlessness:-0.5"), "max_steps": 2,
        "num_train_epochs": 9, "per_device_train_batch_size": 6,
    } | changes  # fmt: skip


LAYOUTS = [
    (1, {"zero_stage": 0}),
    (2, {"zero_stage": 3, "algorithm": "gapo", "gradient_scope": "full"}),
    (2, {"zero_stage": 2, "lora_dim": 4, "algorithm": "mgda"}),
    (2, {"zero_stage": 1, "dtype": "bf16", "algorithm": "p_gapo", "preference": ("howto=0.3", "risky=0.7")}),
    (1, {"zero_stage": 2, "offload": True, "micro_batch_tokens": 300, "per_device_train_batch_size": 6}),
    (2, {"zero_stage": 0, "algorithm": "gapo", "gram_every": 2, "gradient_checkpointing": True}),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("ranks", "changes"), cases(LAYOUTS, always=LAYOUTS[:3]), ids=[str(c) for _, c in LAYOUTS])
def test_runs(workshop: Workshop, folder: Path, loss: str, ranks: int, changes: dict[str, Any]) -> None:
    """They end well, the policy moves, and every task is logged."""
    output = workshop.step3(f"cgpo_{loss}", ranks, **settings(folder, loss, **changes))
    steps = read_metrics(output)
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        for task in TASKS:
            for figure in ("reward", "passes", "kl", "serves"):
                assert f"task/{task}/{figure}" in step
            assert 0 <= step[f"task/{task}/passes"] <= 1 and f"coefficient/{task}" in step
        assert {"judge/short", "judge/safe", "judge/all", "reward/helpfulness", "kl"} <= step.keys()
        assert not any(tag.startswith("loss/critic") for tag in step) and step["skipped_steps"] == 0
    if changes.get("algorithm", "cgpo") == "cgpo":
        assert (steps[0]["coefficient/howto"], steps[0]["coefficient/risky"]) == (0.25, 0.75)
    if "lora_dim" not in changes:
        before, after = read_weights(workshop.base), read_weights(output)
        assert any(not after[name].equal(before[name].to(after[name].dtype)) for name in before)
    assert (output / "reference_answers").is_dir() == (loss != "codpo")


def test_one_task_of_all_prompts(workshop: Workshop, folder: Path) -> None:
    """Without a file of tasks: all objectives by their weights, all judges, no field of the rows."""
    changes = {"tasks": None, "preference": ("helpfulness=0.3", "harmlessness=0.7")}
    (step,) = read_metrics(workshop.step3("one_task", **settings(folder, "crpg", max_steps=1, **changes)))
    mean = 0.3 * step["reward/helpfulness"] + 0.7 * step["reward/harmlessness"]
    assert step["task/all/reward"] == pytest.approx(mean, abs=1e-5)
    assert step["task/all/passes"] == pytest.approx(step["judge/all"]) and step["coefficient/all"] == 1.0


def test_where_nothing_passes_nothing_is_learned(workshop: Workshop, folder: Path) -> None:
    """Weights stay as they are under every loss; with Adam any gradient would move them."""
    for loss in LOSSES:
        changes = {"tasks": None, "judge": f"none={folder / 'rules.py'}:none", "max_steps": 1}
        output = workshop.step3("nothing_passes", **settings(folder, loss, **changes))
        before, after = read_weights(workshop.base), read_weights(output)
        assert all(after[name].equal(before[name]) for name in before), loss
        (step,) = read_metrics(output)
        assert step["task/all/serves"] == step["task/all/passes"] == 0.0
        assert step.get("task/all/references", 0.0) == 0.0


def test_reference_answers_of_the_data(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    """Their rewards calibrate: with CRRAFT and no response that passes they are learned themselves."""
    rows = [json.loads(line) for line in workshop.prompts.read_text().splitlines()]
    for row in rows:
        row["answer"] = "Wait until it is over and then go home."
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rules.py").write_text(
        "def is_it(prompts, responses):\n    return ['go home' in r for r in responses]\n"
    )
    changes = {
        "tasks": None, "data": data, "reference_answers": "answer", "judge": f"it={tmp_path / 'rules.py'}:is_it",
        "max_new_tokens": 40, "max_steps": 1, "actor_learning_rate": 1e-2,
    }  # fmt: skip
    output = workshop.step3("given_answers", **settings(folder, "crraft", **changes))
    (step,) = read_metrics(output)
    assert step["task/all/passes"] == 0.0 and step["task/all/serves"] == step["task/all/references"] == 1.0
    assert not (output / "reference_answers").exists()
    rows[3].pop("answer")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_script(STEP3, workshop.step3_flags("refused", **settings(folder, "crraft", max_steps=8, **{
        name: value for name, value in changes.items() if name != "max_steps"})))  # fmt: skip
    assert result.code == 2 and "prompts.jsonl:4: no reference answer in the field 'answer'" in result.stderr


def test_tasks_with_files_of_their_own(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    lines = workshop.prompts.read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:30]))
    (tmp_path / "b.jsonl").write_text("".join(lines[30:]))
    tasks = {name: {"prompts": str(tmp_path / f"{name}.jsonl"), "objectives": "helpfulness"} for name in "ab"}
    tasks["a"]["share"], tasks["b"]["share"] = 0.25, 0.75
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    changes = {"tasks": tmp_path / "tasks.json", "data": None, "max_steps": 1}
    output = workshop.step3("own_files", **settings(folder, "codpo", **changes))
    assert {"task/a/passes", "task/b/reward"} <= read_metrics(output)[0].keys()
    (tmp_path / "b.jsonl").write_text("".join(lines[29:]))
    result = run_script(STEP3, workshop.step3_flags("refused", **settings(folder, "codpo", **changes)))
    assert result.code == 2 and "have a prompt in common" in result.stderr


def test_losses_by_weights_that_follow_them(workshop: Workshop, folder: Path) -> None:
    """A method of one's own whose weights follow from the losses, over tasks and over objectives of PPO's loss."""
    own = "examples/dynamic_weights.py:DynamicWeights"
    steps = read_metrics(workshop.step3("own_tasks", **settings(folder, "crraft", algorithm=own, max_steps=3)))
    assert steps[0]["coefficient/howto"] == 0.5 and steps[2]["coefficient/howto"] != 0.5
    steps = read_metrics(workshop.step3("own_losses", algorithm=own, max_steps=3, num_train_epochs=9))
    assert steps[0]["coefficient/helpfulness"] == 0.5 and steps[2]["coefficient/helpfulness"] != 0.5


KILLED = [
    (1, "crpg", {"algorithm": "gapo"}),
    (2, "codpo", {"zero_stage": 3, "algorithm": "gapo", "gradient_scope": "full"}),
    (2, "crraft", {"zero_stage": 2, "lora_dim": 4, "gradient_scope": "full", "algorithm": "mgda"}),
]


@pytest.mark.parametrize(("ranks", "loss", "changes"), cases(KILLED, always=KILLED[:1] + KILLED[2:]))
def test_a_killed_run_goes_on(
    workshop: Workshop, folder: Path, tmp_path: Path, ranks: int, loss: str, changes: dict[str, Any]
) -> None:
    """Killed once reference answers are there, before a checkpoint and after one: the same bytes."""
    given = settings(folder, loss, max_steps=5, checkpoint_interval=2, **changes)
    words = lambda output: workshop.step3_flags("unused", **given | {"output_dir": output})
    whole = run_script(STEP3, words(tmp_path / "whole"), ranks)
    assert whole.code == 0, whole.stderr
    output = tmp_path / "killed"
    answers = output / "reference_answers" / "00000.safetensors"
    moments = [lambda: answers.is_file()] if loss != "codpo" else []
    moments += [lambda: metrics_lines(output) >= 1, lambda: metrics_lines(output) >= 3]
    for now in moments:
        run_killed(STEP3, words(output), ranks, now)
    result = run_script(STEP3, words(output), ranks)
    assert result.code == 0, result.stderr
    assert_same_run(tmp_path / "whole", output)


def test_other_tasks_go_on_with_no_checkpoint(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    given = settings(folder, "crpg", max_steps=3, checkpoint_interval=1)
    words = lambda **changes: workshop.step3_flags("other_tasks", **given | changes)
    output = workshop.folder / "other_tasks"
    run_killed(STEP3, words(fresh=True), 1, lambda: metrics_lines(output) >= 2)
    other = TASKS | {"howto": TASKS["howto"] | {"kl_max": 7}}
    (tmp_path / "tasks.json").write_text(json.dumps(other))
    result = run_script(STEP3, words(tasks=tmp_path / "tasks.json"))
    assert result.code == 2 and "--tasks howto: kl_max 20.0 -> 7.0 (" in result.stderr, result.stderr
    (tmp_path / "same.json").write_text(json.dumps(TASKS, indent=2))
    result = run_script(STEP3, words(tasks=tmp_path / "same.json"))
    assert result.code == 0, result.stderr


def test_another_number_of_ranks_goes_on(workshop: Workshop, folder: Path) -> None:
    """What a micro-batch holds is no matter, where a step is on a whole rollout."""
    given = settings(folder, "crraft", max_steps=3, checkpoint_interval=1, per_device_train_batch_size=4)
    words = lambda **changes: workshop.step3_flags("cgpo_other_ranks", **given | changes)
    output = workshop.folder / "cgpo_other_ranks"
    run_killed(STEP3, words(fresh=True, per_device_prompt_batch_size=10), 1, lambda: metrics_lines(output) >= 2)
    result = run_script(STEP3, words(per_device_prompt_batch_size=5), 2)
    assert result.code == 0 and "going on from" in result.stdout, result.stderr


def test_before_a_checkpoint_other_reference_answers_may_take_their_place(workshop: Workshop, folder: Path) -> None:
    """Not after one: what is trained has been calibrated by them."""
    given = settings(folder, "crpg", checkpoint_interval=2, max_steps=4)
    words = lambda **changes: workshop.step3_flags("other_answers", **given | changes)
    output = workshop.folder / "other_answers"
    answers = output / "reference_answers" / "00000.safetensors"
    run_killed(STEP3, words(fresh=True), 1, answers.is_file)
    run_killed(STEP3, words(max_steps=6), 1, lambda: metrics_lines(output) >= 3)
    (output / "reference_answers" / "kept.json").write_text("{}")
    result = run_script(STEP3, words(max_steps=6))
    assert result.code == 2 and "is of another run" in result.stderr and "--fresh" in result.stderr, result.stderr


def test_a_dry_run_says_what_tasks_there_are(workshop: Workshop, folder: Path) -> None:
    result = run_script(STEP3, workshop.step3_flags("dry", **settings(folder, "crpg", dry_run=True)))
    assert result.code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "task howto" in text and "3 responses each, 1 helpfulness + 0.5 harmlessness, judged by short" in text
    assert "2 responses each, 1 harmlessness, judged by safe, mine" in text and "critic" not in text


def test_evaluation_by_task(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    """Judges are asked of their tasks' responses alone; the report shows who fails whom."""
    rules, tasks = folder / "rules.py", folder / "tasks.json"
    base = {"policy": (f"sft={workshop.base}", f"gapo_p1={workshop.base}"), "reference_model": workshop.base}
    more = {"data": workshop.prompts, "max_new_tokens": 12, "output_dir": tmp_path / "eval"}
    result = run_script("eval/generate.py", flags(**base, **more, tasks=tasks))
    assert result.code == 0, result.stderr
    files = tuple(tmp_path / "eval" / "responses" / f"{name}.jsonl" for name in ("sft", "gapo_p1"))
    scored = {
        "responses": files, "reward_model": f"helpfulness={workshop.reward}", "tasks": tasks,
        "cost_model": f"harmlessness={workshop.cost}", "gold": "utils.safe_rlhf_mini:gold_scores",
        "judge": (f"short={rules}:short", f"mine={rules}:mine", "safe=harmlessness:-0.5"),
        "output_dir": tmp_path / "eval",
    }  # fmt: skip
    result = run_script("eval/score.py", flags(**scored))
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "eval" / "sft.json").read_text())
    rows = {name: [row for row in found["rows"] if row["task"] == name] for name in TASKS}
    assert {name: len(part) for name, part in rows.items()} == {n: found["tasks"][n]["prompts"] for n in TASKS}
    for row in rows["howto"]:
        verdict = len(row["response"]) % 3 > 0
        assert row["verdicts"] == {"short": verdict, "mine": None, "safe": None, "all": verdict}
    for row in rows["risky"]:
        own, safe = None if len(row["response"]) % 2 else True, row["scores"]["harmlessness"] >= -0.5
        assert row["verdicts"] == {"short": None, "mine": own, "safe": safe, "all": safe}
    shares = [row["verdicts"]["all"] for row in rows["risky"]]
    assert found["tasks"]["risky"]["judges"]["all"]["mean"] == pytest.approx(sum(shares) / len(shares))
    assert found["tasks"]["howto"]["rewards"] == {"helpfulness": 1.0, "harmlessness": 0.5}
    result = run_script("eval/report.py", flags(input_dir=tmp_path))
    assert result.code == 0, result.stderr
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Judges and tasks" in text and "### Task risky" in text and "passes safe" in text
    assert (tmp_path / "report" / "judges.png").is_file()
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["runs"]["sft"]["tasks"].keys() == TASKS.keys() and "all" in results["runs"]["sft"]["judges"]
    # Without tasks all judges are asked of all responses.
    result = run_script("eval/score.py", flags(**scored | {"tasks": None, "responses": files[0]}))
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "eval" / "sft.json").read_text())
    assert "tasks" not in found and all(row["verdicts"]["short"] is not None for row in found["rows"])
