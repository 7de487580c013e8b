"""step3_dpa: its command line on one and two ranks, killed in every phase, and its policies at use."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from step3_dpa.arguments import parse_args
from step3_dpa.prompts import TRAIN, ask, read_prompts
from tests.helpers import ROOT, Workshop, distance, flags, read_metrics, run_killed, run_script
from tests.test_chat import FORGETFUL, talk, with_template
from tests.test_resume import assert_same_run
from utils.data.encoding import data_fingerprint, encode_prompt, response_text
from utils.models.configs import load_config, load_tokenizer
from utils.steering.directions import Steering

pytestmark = pytest.mark.slow

STEP3_DPA = "step3_dpa/main.py"
REPLIES, TOKENS = 3, 8
SCORES = ("scores_helpfulness", "scores_harmlessness")


def dpa_flags(workshop: Workshop, output: Path, **changes: Any) -> list[str]:
    return flags(**{
        "actor_model": workshop.base, "reward_model": f"helpfulness={workshop.reward}",
        "cost_model": f"harmlessness={workshop.cost}", "data": workshop.prompts, "min_angle": 0, "max_angle": 90,
        "samples_per_direction": REPLIES, "max_prompt_length": 160, "max_new_tokens": TOKENS,
        "per_device_prompt_batch_size": 8, "iterations": 2, "per_device_train_batch_size": 8, "learning_rate": 3e-3,
        "validation_fraction": 0.1, "checkpoint_interval": 3, "output_dir": output,
    } | changes)  # fmt: skip


def run(workshop: Workshop, output: Path, ranks: int = 1, **changes: Any) -> Path:
    """From its beginning to a good end; its output folder."""
    result = run_script(STEP3_DPA, dpa_flags(workshop, output, **{"fresh": True} | changes), ranks)
    assert result.code == 0, result.stderr
    return output


@pytest.fixture(scope="module")
def whole(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    return run(workshop, tmp_path_factory.mktemp("dpa") / "policy")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_people_look_at(workshop: Workshop, whole: Path) -> None:
    metrics = read_metrics(whole)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics[:2]:
        assert line["rating/kept"] > line["rating/sampled"] and line["acceptance/replies"] == pytest.approx(1 / REPLIES)
        assert line["held_out/rating/kept"] > line["held_out/rating/sampled"]
    assert "held_out/rating/sampled" in metrics[2] and distance(whole, workshop.base) > 1e-4
    steering = load_config(str(whole), "--policy").steering
    assert steering["attributes"] == ["helpfulness", "harmlessness"]
    assert not (whole / "iteration_1/model.safetensors").exists() and not (whole / "iteration_3").exists()
    assert (whole / "iteration_2/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, second = (lines_of(whole / f"iteration_{number}/kept.jsonl") for number in (1, 2))
    assert len(first) == len(second) == 58  # of 64 prompts, 6 are held out
    assert {row["prompt"] for row in first} == {row["prompt"] for row in second}
    assert [row["direction"] for row in first] != [row["direction"] for row in second]
    for row in first:
        weights = row["direction"]
        assert math.hypot(*weights.values()) == pytest.approx(1) and min(weights.values()) >= 0
        assert row["rating"] == pytest.approx(sum(weights[name] * row["values"][name] for name in weights))
        said = " + ".join(f"{name}*{round(100 * weight)}" for name, weight in weights.items())
        text = f"Your response should maximize weighted rating = {said}."
        assert row["messages"] == [{"role": "system", "content": text}, {"role": "user", "content": row["prompt"]}]
    assert "steered by directions" in (whole / "README.md").read_text()


def test_what_is_kept_is_the_best_by_hand(workshop: Workshop, tmp_path: Path) -> None:
    """Of tables that a run leaves which is killed while it trains."""
    output = tmp_path / "policy"
    trains = lambda: (output / "iteration_1/checkpoints").is_dir()
    run_killed(STEP3_DPA, dpa_flags(workshop, output), 1, trains)
    part = output / "iteration_1/train"
    replies = load_file(part / "samples/00000.safetensors")["values"]
    tables = [load_file(part / f"{name}/00000.safetensors")["values"] for name in SCORES]
    values = torch.cat([table[:, :, :, 0] for table in tables], dim=2)  # [n, replies, 2]
    assert replies.shape == (58, REPLIES, TOKENS) and all((table[..., 1] == 1).all() for table in tables)
    tokenizer = load_tokenizer(str(workshop.base), "--actor_model")
    kept = lines_of(output / "iteration_1/kept.jsonl")
    choices = set()
    for row, ids, of_prompt in zip(kept, replies, values.tolist(), strict=True):
        ratings = [
            sum(w * v for w, v in zip(row["direction"].values(), of_reply, strict=True)) for of_reply in of_prompt
        ]
        best = max(range(REPLIES), key=lambda reply: ratings[reply])
        assert row["rating"] == pytest.approx(ratings[best])
        assert row["response"] == response_text(tokenizer, [i for i in ids[best].tolist() if i >= 0])
        choices.add(best)
    assert choices == set(range(REPLIES))


KILLED = {
    "sampling": lambda output: (output / "iteration_2/train/samples/kept.json").is_file(),
    "scoring": lambda output: (output / "iteration_2/train/scores_helpfulness/kept.json").is_file(),
    "training": lambda output: any((output / "iteration_2/checkpoints").glob("step_*")),
    "measuring the result": lambda output: (output / "iteration_3/held_out").is_dir(),
}


@pytest.mark.parametrize("phase", KILLED)
def test_killed_runs_go_on_to_the_same_policy(workshop: Workshop, whole: Path, tmp_path: Path, phase: str) -> None:
    output, now = tmp_path / "policy", KILLED[phase]
    run_killed(STEP3_DPA, dpa_flags(workshop, output), 1, lambda: now(output))
    assert not (output / "config.json").exists()
    result = run_script(STEP3_DPA, dpa_flags(workshop, output))
    assert result.code == 0, result.stderr
    assert "iterations 1 to 1 of 2 are finished" in result.stdout or phase == "measuring the result"
    assert_same_run(whole, output)
    for number in (1, 2):
        names = [f"iteration_{number}/{name}" for name in ("kept.jsonl", "evaluation.json")]
        assert all((whole / name).read_text() == (output / name).read_text() for name in names)


def test_two_ranks_with_zero_3_and_other_starts(workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    changes = {"zero_stage": 3, "start": "base", "keep_iterations": True, "per_device_train_batch_size": 4}
    changes |= {"directions_per_prompt": 2, "prompts_per_iteration": 20, "direction_draw": "even", "dtype": "bf16"}
    output = run(workshop, tmp_path / "policy", 2, **changes)
    starts = [json.loads((output / f"iteration_{n}/args.json").read_text())["model_name_or_path"] for n in (1, 2)]
    assert starts == [str(workshop.base)] * 2
    assert len(lines_of(output / "iteration_1/kept.jsonl")) == 40
    assert (output / "iteration_1/model.safetensors").is_file()
    last = json.loads((whole / "iteration_2/args.json").read_text())["model_name_or_path"]
    assert last == str(whole / "iteration_1")


BAD = {
    "one attribute": ({"cost_model": None}, "a direction needs two attributes or more (there is helpfulness)"),
    "angles": ({"min_angle": 60, "max_angle": 30}, "--min_angle 60: is larger than --max_angle 30"),
    "no angle": ({"max_angle": 500}, "'500' is not an angle from -180 to 180 degrees"),
    "message": ({"message": "Be good."}, "--message 'Be good.': has no {weights}, where the direction goes"),
    "scale": ({"score_scale": "honesty=2"}, "--score_scale honesty: no such attribute"),
    "no scale": ({"score_scale": "helpfulness=-2"}, "--score_scale helpfulness=-2: not a positive number"),
    "one reply": ({"samples_per_direction": 1}, "--samples_per_direction 1: there has to be a choice"),
    "prompts": ({"prompts_per_iteration": 500}, "--prompts_per_iteration 500: there are 58 to train on"),
    "room": ({"max_prompt_length": 9}, "is longer than --max_prompt_length 9"),
    "positions": ({"max_new_tokens": 5000}, "--max_prompt_length 160 and --max_new_tokens 5000"),
    "no offload": ({"offload": True}, "--offload: needs --zero_stage 1, 2 or 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(workshop: Workshop, tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    result = run_script(STEP3_DPA, dpa_flags(workshop, tmp_path / "policy", **changes))
    assert result.code == 2 and message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "policy").exists()


def test_a_template_without_system_turns_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    policy = with_template(workshop.base, tmp_path / "base", FORGETFUL)
    result = run_script(STEP3_DPA, dpa_flags(workshop, tmp_path / "policy", actor_model=policy))
    assert result.code == 2 and "the chat template leaves out the system turn" in result.stderr


def test_what_is_not_steered_yet_is_not_told(workshop: Workshop, tmp_path: Path) -> None:
    """The first samples are the SFT policy's answers to plain prompts; from then on the direction is in the prompt."""
    output, sees = tmp_path / "policy", []
    for number in (1, 2):
        table = output / f"iteration_{number}/train/samples"
        sampled = lambda table=table: (table / "00000.safetensors").is_file()
        run_killed(STEP3_DPA, dpa_flags(workshop, output, message="{weights}"), 1, sampled)
        sees.append(json.loads((table / "kept.json").read_text())["prompts"])
    tokenizer, fingerprints = load_tokenizer(str(workshop.base), "--actor_model"), []
    args = parse_args(dpa_flags(workshop, output, message="{weights}"))
    steering = Steering(("helpfulness", "harmlessness"), "{weights}")
    prompts, _ = read_prompts(args, steering, tokenizer, None)
    for number in (1, 2):
        asked = ask(prompts, TRAIN, number, args, steering, tokenizer)
        fingerprints.append(data_fingerprint([each.untold(tokenizer) for each in asked] if number == 1 else asked))
    assert sees == fingerprints


def test_the_launcher(workshop: Workshop) -> None:
    models = {"ACTOR_MODEL": workshop.base, "REWARD_MODEL": workshop.reward, "COST_MODEL": workshop.cost}
    settings = {"OUTPUT": workshop.folder, "PYTHON": sys.executable, "DRY_RUN": "true", "ITERATION_PROMPTS": "10"}
    for script in ("tiny", "smoke"):
        command = ["bash", f"step3_dpa/training_scripts/{script}_policy.sh"]
        environment = os.environ | {name: str(value) for name, value in (models | settings).items()}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "every phase fits" in result.stdout and "attributes" in result.stdout


def test_other_flags_do_not_go_on(workshop: Workshop, whole: Path) -> None:
    result = run_script(STEP3_DPA, dpa_flags(workshop, whole))
    assert result.code == 2 and "a finished result is there" in result.stderr
    (whole / "unfinished").write_text("")
    result = run_script(STEP3_DPA, dpa_flags(workshop, whole, max_angle=80))
    assert result.code == 2 and "iterations of another run: --max_angle 90.0 -> 80.0" in result.stderr
    (whole / "unfinished").unlink()


def test_a_dry_run(workshop: Workshop, tmp_path: Path) -> None:
    result = run_script(STEP3_DPA, dpa_flags(workshop, tmp_path / "policy", dry_run=True))
    assert result.code == 0 and not (tmp_path / "policy").exists(), result.stderr
    assert "replies of an iteration" in result.stdout and "every phase fits" in result.stdout
    assert all(phase in result.stdout for phase in ("sampling", "scoring", "training"))
    result = run_script(STEP3_DPA, dpa_flags(workshop, tmp_path / "policy", dry_run=True, message="x", min_angle=95))
    assert result.code == 2 and result.stderr.count("error: ") == 2


def test_policies_answer_to_directions(workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    def generate(policy: Path, **changes: Any) -> Any:
        return run_script("eval/generate.py", flags(**{
            "policy": f"steered={policy}", "reference_model": workshop.base, "data": workshop.prompts,
            "max_new_tokens": TOKENS, "output_dir": tmp_path,
        } | changes))  # fmt: skip

    weights = ("helpfulness=0.6", "harmlessness=0.8")
    result = generate(whole, direction=weights)
    assert result.code == 0, result.stderr
    rows = lines_of(tmp_path / "responses/steered.jsonl")
    plain = [{"role": "user", "content": rows[0]["prompt"]}]
    assert rows[0]["messages"] == plain  # as score models read it
    assert rows[0]["fields"]["direction"] == pytest.approx({"helpfulness": 0.6, "harmlessness": 0.8})
    assert all(math.isfinite(row["kl"]) for row in rows)
    assert "skipped" in generate(whole, direction=weights).stdout
    assert "skipped" not in generate(whole, direction=("helpfulness=1",)).stdout
    assert generate(whole).code == 0  # without a direction, as any other policy
    refused: dict[str, Callable[[], Any]] = {
        "is no policy that is steered": lambda: generate(workshop.base, direction=weights),
        "--direction honesty: no attribute of the policy": lambda: generate(whole, direction=("honesty=1",)),
        "at least one weight is other than 0": lambda: generate(whole, direction=("helpfulness=0",)),
    }
    for message, attempt in refused.items():
        result = attempt()
        assert result.code == 2 and message in result.stderr, result.stderr


def test_a_conversation_changes_its_direction(workshop: Workshop, whole: Path) -> None:
    said = "hello\n/direction\n/direction harmlessness=2\n/policies\nhello\n/direction honesty=1\n/direction x\n"
    ended = talk(said, policy=f"steered={whole}", direction=("helpfulness=1",))
    assert ended.code == 0 and not ended.stderr, ended.stderr
    assert "steered: helpfulness*100 + harmlessness*0\n" in ended.stdout
    assert "1 exchanges, helpfulness*0 + harmlessness*100" in ended.stdout
    assert "/direction honesty: no attribute of the policy" in ended.stdout
    ended = talk("/direction helpfulness=1\n", policy=f"base={workshop.base}")
    assert "no policy here is steered by a direction" in ended.stdout


def test_the_direction_is_in_the_ids(whole: Path) -> None:
    tokenizer = load_tokenizer(str(whole), "--policy")
    turns = [{"role": "system", "content": "helpfulness*92 + harmlessness*38"}, {"role": "user", "content": "?"}]
    other = [{"role": "system", "content": "helpfulness*38 + harmlessness*92"}, {"role": "user", "content": "?"}]
    assert encode_prompt(tokenizer, turns) != encode_prompt(tokenizer, other)
