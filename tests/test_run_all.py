"""What run_all.sh runs, in which order and when again: with a stand-in for Python that just leaves the files behind
that the real scripts would, so that a whole preset takes seconds. The scripts themselves are tested elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import EXHAUSTIVE, cases

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = r"""#!/usr/bin/env bash
case $1 in - | -c) exec "$REAL_PYTHON" "$@" ;; esac
echo "$*" >> "$CALLS"
words=("$@")
value() { for ((i = 0; i < ${#words[@]}; i++)); do if [ "${words[i]}" = "$1" ]; then echo "${words[i + 1]}"; fi; done; }
values() { # all words after flag $1
    local on=false word
    for word in "${words[@]}"; do
        case $word in "$1") on=true ;; --*) on=false ;; *) if $on; then echo "$word"; fi ;; esac
    done
}
out=$(value --output_dir)
case "$*" in
    *" --dry_run"*) ;;
    *utils.safe_rlhf_mini*--seed*)
        mkdir -p "$out"
        printf '{"risky": false}\n{"risky": true}\n' > "$out/prompts_test.jsonl" ;;
    *make_base.py*)
        base=$(value --model_dir)
        mkdir -p "$base"; rm -f "$base/unfinished"; touch "$base/config.json" ;;
    *generate.py*)
        mkdir -p "$out/responses"
        values --policy | while read -r policy; do
            [ -e "${policy#*=}/config.json" ] && touch "$out/responses/${policy%%=*}.jsonl"
        done ;;
    *score.py*)
        values --responses | while read -r file; do
            [ -e "$file" ] && touch "$out/$(basename "$file" .jsonl).json"
        done ;;
    *stand_in.py*) mkdir -p "$(value --policy)" ;;
    *pin_revisions.py*) values --model; values --data ;;
    *judge.py*) exit "${JUDGE_EXIT:-0}" ;;
    *launcher.runner*) mkdir -p "$out"; touch "$out/config.json"; echo "Process 1 exits successfully." ;;
    *report.py*) mkdir -p "$(value --input_dir)/report"; touch "$(value --input_dir)/report/results.json" ;;
    *) mkdir -p "$out"; rm -f "$out/unfinished"; touch "$out/config.json" ;;
esac
"""


@pytest.fixture
def run_all(tmp_path: Path):
    """`run_all(*flags, **variables)`: run_all.sh tiny, or another preset, in `tmp_path/out put`.

    Returns (exit code, what it said, its calls).
    """
    stand_in, calls = tmp_path / "python", tmp_path / "calls"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(*flags: str, preset: str = "tiny", **variables: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        environment = os.environ | {
            "PYTHON": str(stand_in), "REAL_PYTHON": sys.executable, "CALLS": str(calls), "JOBS": "2",
            "OUTPUT": str(tmp_path / "out put"),
        } | variables  # fmt: skip
        result = subprocess.run(
            ["bash", "run_all.sh", preset, *flags],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return result.returncode, result.stdout + result.stderr, calls.read_text().splitlines()

    return run


def of(script: str, calls: list[str]) -> list[str]:
    return [call for call in calls if f"{script}.py" in call]


def trained(calls: list[str]) -> list[str]:
    return sorted(call.rsplit("/", 1)[-1] for call in of("step3_gapo/main", calls))


def test_every_row_and_front_of_the_paper(run_all) -> None:
    code, said, calls = run_all()
    assert code == 0, said
    fronts = {f"{family}_{weight}" for family in ("p_gapo", "morlhf") for weight in (0.2, 0.4, 0.6, 0.8)}
    rows = {"safe_rlhf", "fast_rl", "morlhf_0.5", "mgda", "gapo_p1", "gapo_p2", "ppo_harmlessness"}
    assert set(trained(calls)) == rows | fronts | {"ppo_helpfulness"} | {f"{row}@imbalanced" for row in rows}
    assert len(of("eval/soup", calls)) == 5 and len(of("eval/generate", calls)) == 2
    (judged,) = of("eval/judge", calls)
    compared = judged.split(" --baseline")[0].split("--policy ")[1].split("=")
    assert "gapo_p1@imbalanced" in judged and "p_gapo_0.2" not in judged and "morlhf_0.2" not in judged
    assert len(compared) == 1 + len(rows) * 2 + 1
    assert judged.count("prompts_test_benign.jsonl") == judged.count("prompts_test_risky.jsonl") == 1
    assert calls.index(judged) < calls.index(of("eval/report", calls)[0])


def test_three_objectives_one_of_them_a_function(run_all, tmp_path: Path) -> None:
    code, said, calls = run_all(preset="three")
    assert code == 0, said
    corners = ["0.2_0.2_0.6", "0.2_0.6_0.2", "0.33_0.33_0.33", "0.6_0.2_0.2"]
    experts = ["ppo_conciseness", "ppo_harmlessness", "ppo_helpfulness"]
    assert trained(calls) == ["gapo_p1", "morlhf_0.33_0.33_0.33", *(f"p_gapo_{point}" for point in corners), *experts]
    assert len(of("step2_reward/main", calls)) == 2, "a function is not trained"
    out = tmp_path / "out put"
    flags = f"--reward_model helpfulness={out}/reward/helpfulness --cost_model harmlessness={out}/cost/harmlessness"
    flags += " --reward_function conciseness=examples/reward_functions.py:conciseness "
    assert all(flags in call for call in [*of("step3_gapo/main", calls), *of("eval/score", calls)])
    (judged,) = of("eval/judge", calls)
    assert "--objective helpfulness harmlessness --prompts " in judged and "p_gapo" not in judged
    assert "morlhf_0.33_0.33_0.33" in judged and "ppo_conciseness" in judged
    assert run_all(preset="three")[2] == []


def test_rows_of_a_users_own_go_with_the_outputs(run_all, tmp_path: Path) -> None:
    row = "my_{w} | Mine | {w} | front | #123456 P | | step3_gapo | sft scores | --algorithm p_gapo"
    row += " --preference {preference}"
    (tmp_path / "my.txt").write_text(row)
    runs = {"RUNS": "my_0.3 gapo_p1", "METHODS": str(tmp_path / "my.txt")}
    code, said, calls = run_all(**runs)
    assert code == 0, said
    assert trained(calls) == ["gapo_p1", "my_0.3"] and "my_0.3" not in of("eval/judge", calls)[0]
    assert any("--preference helpfulness=0.3 harmlessness=0.7 " in call for call in of("step3_gapo/main", calls))
    assert (tmp_path / "out put/methods.txt").read_text() == row, "for the report"
    assert run_all(**runs)[2] == []
    (tmp_path / "my.txt").write_text(row.replace("#123456", "#654321"))
    assert "eval/report.py" in run_all(**runs)[2][-1]


def test_seeds_are_further_runs_and_nothing_is_done_twice(run_all) -> None:
    runs = {"RUNS": "gapo_p1 gapo_p1#43 ppo_helpfulness ppo_harmlessness rewarded_soup_0.4@imbalanced mgda@imbalanced"
                    " ppo_harmlessness@imbalanced"}  # fmt: skip
    code, said, calls = run_all(**runs, SEEDS="2")
    assert code == 0, said
    once = ["gapo_p1", "ppo_helpfulness", "ppo_harmlessness", "mgda@imbalanced", "ppo_harmlessness@imbalanced"]
    assert trained(calls) == sorted([*once, *(f"{name}#43" for name in once)])
    assert sorted(call.count("#43") for call in of("eval/soup", calls)) == [0, 3]  # two experts, one output
    assert "#" not in of("eval/judge", calls)[0]
    code, said, calls = run_all(**runs, SEEDS="2")
    assert (code, calls) == (0, []) and "[evaluation] is there already" in said
    assert len(trained(run_all(**runs, SEEDS="3")[2])) == len(once)


@EXHAUSTIVE
def test_a_soup_is_made_again_when_an_expert_is(run_all, tmp_path: Path) -> None:
    runs = {"RUNS": "ppo_helpfulness ppo_harmlessness rewarded_soup_0.4"}
    assert run_all(**runs)[0] == 0
    (tmp_path / "out put/policies/ppo_helpfulness/config.json").unlink()
    code, said, calls = run_all(**runs)
    assert code == 0, said
    assert (trained(calls), len(of("eval/soup", calls)), len(of("eval/report", calls))) == (["ppo_helpfulness"], 1, 1)


EVALUATION = ["eval/generate", "eval/generate", "eval/score", "eval/judge", "eval/report"]
# What was under way when the command was killed -> what the same command then does, in order.
UNFINISHED = {
    "base": ["utils.safe_rlhf_mini", "utils/make_base"],
    "sft": ["step1_sft/main", *EVALUATION],
    "cost/harmlessness": ["step2_reward/main", *EVALUATION],
    "policies/gapo_p1": ["step3_gapo/main", *EVALUATION],
    "policies/ppo_helpfulness": ["step3_gapo/main", "eval/soup", *EVALUATION],
}


@pytest.mark.parametrize("folder", cases(UNFINISHED, always=["policies/gapo_p1"]))
def test_what_a_killed_run_has_not_finished_goes_on(run_all, tmp_path: Path, folder: str) -> None:
    """An older result, complete, does not pass for that of the run that was killed."""
    runs = {"RUNS": "gapo_p1 ppo_helpfulness ppo_harmlessness rewarded_soup_0.4"}
    assert run_all(**runs)[0] == 0
    mark = tmp_path / "out put" / folder / "unfinished"
    mark.touch()
    code, said, calls = run_all(**runs)
    assert code == 0, said
    assert [re.sub(r"^(-u |-m )?(\S+?)(\.py)? .*", r"\2", call) for call in calls] == UNFINISHED[folder]
    assert "--fresh" not in " ".join(calls)
    assert not mark.exists()
    assert run_all(**runs)[2] == []


@pytest.mark.parametrize(
    ("model", "notes"),
    cases(
        [("sft", 3), ("reward/helpfulness", 1), ("cost/harmlessness", 1), ("policies/gapo_p1", 0)],
        always=[("sft", 3)],
    ),
)
def test_what_comes_from_an_older_model_is_told(run_all, tmp_path: Path, model: str, notes: int) -> None:
    """Somebody trains a model once more by its own script: finished models stay, the evaluation is made again."""
    assert run_all(RUNS="gapo_p1")[0] == 0
    (tmp_path / "out put" / model / "config.json").touch()
    code, said, calls = run_all(RUNS="gapo_p1")
    assert code == 0, said
    assert not [call for call in calls if "/main.py " in call]
    assert said.count(f"is older than {model}; remove") == notes
    assert all(of(script, calls) for script in EVALUATION)
    assert run_all(RUNS="gapo_p1")[2] == []


def test_a_dry_run_says_what_would_be_done_and_leaves_no_trace(run_all, tmp_path: Path) -> None:
    code, said, calls = run_all(RUNS="gapo_p1 rewarded_soup_0.4", DRY_RUN="1")
    assert code == 0 and not (tmp_path / "out put").exists(), said
    (checked,) = calls  # the evaluation's flags: the stand-in has nothing to say of them
    assert re.match(r"eval/check.py --no_prompts 'eval/generate.py' .*'eval/score.py' .*'eval/judge.py'", checked)
    assert said.splitlines()[1:-1] == [
        "[data] would be made",
        "[sft] would be trained; a dry run checks it once base is made",
        "[reward/helpfulness] would be trained; a dry run checks it once sft is made",
        "[cost/harmlessness] would be trained; a dry run checks it once sft is made",
        "[policies] 1 would be trained: gapo_p1",
        "[policies] 1 would be averaged: rewarded_soup_0.4",
        "[policies] a dry run checks them once sft is made",
        "[evaluation] flags and test prompts:",
        "not checked yet: sft, reward/helpfulness, cost/harmlessness, policies",
    ]


def test_a_dry_run_checks_every_stage_whose_models_are_there(run_all, tmp_path: Path) -> None:
    ready = {name: str(tmp_path / name) for name in ("ACTOR_MODEL", "REWARD_MODEL", "COST_MODEL")}
    runs = "gapo_p1 mgda gapo_p1_full ppo_helpfulness ppo_harmlessness safe_rlhf@imbalanced#43"
    code, said, calls = run_all("--dry_run", RUNS=runs, RANKS="4", GPUS="2", **ready)
    assert (code, calls) == (2, []) and said == "error: RANKS=4: more ranks than GPUs (2) on a machine\n"
    code, said, calls = run_all("--dry_run", RUNS=runs, RANKS="4", GPUS="4", GPU_MEMORY="40", **ready)
    assert code == 0, said
    checked = [call.split("--output_dir ")[1].rsplit("/", 1)[1] for call in of("step3_gapo/main", calls)]
    plan = " --dry_run --plan_ranks 4 --plan_devices 4 --plan_memory 40"
    assert checked == [name + plan for name in ("gapo_p1", "gapo_p1_full", "ppo_helpfulness")]
    assert len(calls) == 4 and all(f"--actor_model {ready['ACTOR_MODEL']} " in call for call in calls[:3])
    assert f"'--reference_model' '{ready['ACTOR_MODEL']}'" in calls[3]


def test_a_dry_run_lets_the_base_stand_in_for_what_is_trained_from_it(run_all, tmp_path: Path) -> None:
    (tmp_path / "out put/base").mkdir(parents=True)
    (tmp_path / "out put/base/config.json").touch()
    code, said, calls = run_all("--dry_run", RUNS="gapo_p1")
    assert code == 0 and said.count("stands in for it") == 3, said
    (made,) = of("utils/launch/stand_in", calls)
    policy, reward, cost = re.search(r"--policy (\S+) .*=(\S+) .*=(\S+)", made).groups()
    assert f"--model_name_or_path {policy} " in of("step2_reward/main", calls)[0]
    (call,) = of("step3_gapo/main", calls)
    assert f"--actor_model {policy} --reward_model helpfulness={reward} --cost_model harmlessness={cost} " in call
    assert not Path(policy).exists() and [path.name for path in (tmp_path / "out put").iterdir()] == ["base"]


def test_machines_that_meet_at_one_port_train_one_after_another(run_all, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=1")
    for name in ("pdsh", "ssh"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, said, _ = run_all(JOBS="4", HOSTFILE=str(tmp_path / "hosts"), PATH=path, RUNS="gapo_p1")
    assert code == 0 and "(1 pieces at once)" in said, said


def test_a_further_machine_takes_part_in_the_trainings_alone(run_all, tmp_path: Path) -> None:
    (tmp_path / "out put/base").mkdir(parents=True)
    (tmp_path / "out put/base/config.json").touch()  # made by the first machine
    node = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
    runs = "gapo_p1 ppo_helpfulness ppo_harmlessness rewarded_soup_0.4"
    code, said, calls = run_all(RUNS=runs, **node)
    assert code == 0 and "this machine's part is done; the first one evaluates" in said, said
    assert len(calls) == 6 and len(of("step3_gapo/main", calls)) == 3
    address = r"-m deepspeed.launcher.runner --no_ssh --hostfile \S+ --node_rank 1 --master_addr 10.0.0.1 --master_port"
    assert all(re.match(address, call) for call in calls)
    assert (tmp_path / "out put/logs/sft.node1.log").exists() and not (tmp_path / "out put/logs/sft.log").exists()
    code, said, _ = run_all("--fresh", **node)
    assert code == 2 and said.startswith("error: --fresh: with NNODES=2, remove ")


def test_every_stage_is_told_of_zero_and_checkpoints(run_all) -> None:
    code, said, calls = run_all(RUNS="gapo_p1", ZERO_STAGE="2", CHECKPOINT_INTERVAL="3")
    assert code == 0, said
    trainings = [call for call in calls if "/main.py " in call]
    assert len(trainings) == 4
    assert all("--zero_stage 2 " in call and "--checkpoint_interval 3 " in call for call in trainings)


def test_fresh_removes_unfinished_work_too(run_all, tmp_path: Path) -> None:
    assert run_all(RUNS="gapo_p1")[0] == 0
    out = tmp_path / "out put"
    begun = [out / "sft/checkpoints/step_00000002", out / "policies/mgda/checkpoints", out / ".sft.a1b2c3d4"]
    for folder in begun:
        folder.mkdir(parents=True)
    own = out / "notes"
    own.touch()
    code, said, calls = run_all("--fresh", RUNS="gapo_p1")
    assert code == 0, said
    assert of("step1_sft/main", calls) and not any(folder.exists() for folder in begun) and own.exists()


def test_left_overs_of_killed_runs_go_when_they_are_old(run_all, tmp_path: Path) -> None:
    assert run_all(RUNS="gapo_p1")[0] == 0
    out = tmp_path / "out put"
    left = [out / ".report.a1b2c3d4/x", out / "policies/.gapo_p1.a_b2c3d4/x", out / "sft/.unfinished.a1b2c3d4/x",
            out / "eval/.gapo_p1.json.4711"]  # fmt: skip
    kept = [out / ".mine", out / "eval/responses/.gapo_p1.jsonl.partial", out / ".other.a1b2c3d4/x"]
    for file in left + kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert run_all(RUNS="gapo_p1")[0] == 0
    assert all(file.exists() for file in left + kept), "a run beside this one may be writing them"
    for file in left + kept:
        for path in (file, file.parent):
            os.utime(path, (0, 0))
    assert run_all(RUNS="gapo_p1")[0] == 0
    assert not any(file.exists() for file in left) and all(file.exists() for file in kept)


def test_an_evaluation_that_was_broken_off_is_done_again(run_all) -> None:
    assert run_all(RUNS="gapo_p1")[0] == 0
    code, said, calls = run_all(RUNS="gapo_p1 mgda", JUDGE_EXIT="9")
    assert code == 9 and "error: evaluation ended with exit code 9" in said and not of("eval/report", calls)
    code, said, calls = run_all(RUNS="gapo_p1 mgda")
    assert code == 0, said
    assert not trained(calls) and of("eval/judge", calls) and of("eval/report", calls)


def test_without_anything_to_judge_there_is_a_report(run_all) -> None:
    code, said, calls = run_all(RUNS="p_gapo_0.2 gapo_p1#43")
    assert code == 0, said
    assert not of("eval/judge", calls) and of("eval/report", calls)


def test_a_language_model_judges_where_one_is_named(run_all) -> None:
    judge = "--base_url http://localhost:1/v1 --model m"
    assert run_all(RUNS="gapo_p1")[0] == 0
    code, said, calls = run_all(RUNS="gapo_p1", JUDGE=judge)
    assert code == 0, said
    assert judge in of("eval/judge", calls)[0] and "--gold" not in of("eval/judge", calls)[0]
