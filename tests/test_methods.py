"""The table of methods: every row is a command of its stage, whatever the objectives; and rows of a user's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval import soup
from step3_gapo.arguments import check_algorithm_options, parse_args
from step3_gapo.needs import method_of
from utils.combining.algorithm import build, options_of
from utils.scoring.objectives import declared_objectives

ROOT = Path(__file__).resolve().parents[1]
TWO = "reward/helpfulness cost/harmlessness"
THREE = f"{TWO} function/conciseness=examples/reward_functions.py:conciseness"
NAMES = {TWO: ["helpfulness", "harmlessness"], THREE: ["helpfulness", "harmlessness", "conciseness"]}
WEIGHTS = {TWO: ("0.2", "0.5"), THREE: ("0.6_0.2_0.2", "0.33_0.33_0.33")}
SETTLED = "source utils/launch/variables.sh; source utils/launch/objectives.sh; source utils/launch/methods.sh; "
SETTLED += "settle_objectives && read_methods || exit; "


def bash(script: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "OUTPUT": "out"} | variables
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def commands(objectives: str, runs: list[str], **variables: str) -> list[list[str]]:
    """What preset tiny's script would start for each run: [[script, log, flags ...]]."""
    script = (ROOT / "step3_gapo/training_scripts/tiny_policy.sh").read_text()
    script = script.replace('$(dirname "${BASH_SOURCE[0]}")', "step3_gapo/training_scripts")
    train = f'launch() {{ printf "%s\\n" "$@"; echo; }}; for run in {" ".join(runs)}; do train_policy "$run"; done'
    result = bash(script.replace('train_policy "${1:-}"; exit', train), OBJECTIVES=objectives, **variables)
    assert result.returncode == 0, result.stderr
    return [block.splitlines() for block in result.stdout.removesuffix("\n\n").split("\n\n")]


def rows() -> list[str]:
    """The runs of the table, patterns included."""
    lines = (ROOT / "presets/methods.txt").read_text().splitlines()
    found = [line.split("|")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return [run for run in found if run not in ("run", "sft")]


def expand(row: str, objectives: str) -> list[str]:
    """Runs that a row stands for."""
    if "{objective}" in row:
        return [row.replace("{objective}", name) for name in NAMES[objectives]]
    return list(dict.fromkeys(row.replace("{w}", text).replace("{equal}", WEIGHTS[objectives][1])
                              for text in WEIGHTS[objectives]))  # fmt: skip


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=["two", "three"])
def test_every_row_is_a_command_of_its_stage(objectives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every condition, and with the gradients of all parameters where they are compared."""
    table = rows()
    conditions = [row for row in table if row.startswith("@")]
    runs = [run for row in table if row not in conditions for run in expand(row, objectives)]
    assert len(runs) == len(set(runs)) + 1, "the pattern of equal weights is one of the others, too"
    runs += [f"{run}{condition}" for run in runs for condition in conditions]
    for run, (script, _, *flags) in zip(runs, commands(objectives, runs), strict=True):
        assert flags[flags.index("--output_dir") + 1] == f"out/policies/{run}"
        if script == "eval/soup.py":
            monkeypatch.setattr(sys, "argv", [script, *flags])
            args = soup.parse_args()
            assert list(soup.check_weights(args.expert, args.weight)) == NAMES[objectives]
            continue
        assert script == "step3_gapo/main.py"
        args = parse_args(flags)
        check_algorithm_options(args)
        objectives_of_run = declared_objectives(args)
        assert [objective.name for objective in objectives_of_run] == NAMES[objectives]
        optimized = [objective for objective in objectives_of_run if objective.name not in args.monitor]
        assert len(optimized) == (1 if args.algorithm == "ppo" else len(objectives_of_run))
        names, kinds = zip(*((objective.name, objective.kind) for objective in optimized), strict=True)
        build(method_of(args), names, kinds, dict(args.preference), options_of(method_of(args), args))
        assert args.score_scale == ([("harmlessness", 4.0)] if "@" in run else [])


def test_a_name_says_all_weights_of_more_than_two_objectives() -> None:
    (two,), (corner, middle, soup_of_three) = (
        commands(TWO, ["p_gapo_0.2"]),
        commands(THREE, ["p_gapo_0.6_0.2_0.2_full", "morlhf_0.33_0.33_0.33", "rewarded_soup_0.5_0.3_0.2@imbalanced#7"]),
    )
    assert flag(two, "--preference") == ["helpfulness=0.2", "harmlessness=0.8"]
    assert flag(corner, "--preference") == ["helpfulness=0.6", "harmlessness=0.2", "conciseness=0.2"]
    assert flag(corner, "--gradient_scope") == ["full"] and "--gradient_scope" not in middle
    assert {word.split("=")[1] for word in flag(middle, "--preference")} == {"0.333333333"}, "rounded in the name alone"
    assert flag(soup_of_three, "--expert") == [
        "helpfulness=out/policies/ppo_helpfulness#7",
        "harmlessness=out/policies/ppo_harmlessness@imbalanced#7",
        "conciseness=out/policies/ppo_conciseness#7",
    ]


def flag(command: list[str], name: str) -> list[str]:
    """The words after a flag."""
    words = command[command.index(name) + 1 :]
    return words[: next((index for index, word in enumerate(words) if word.startswith("--")), None)]


# Objectives, a run -> what the one line says.
REFUSED = {
    "p_gapo_0.6_0.2": (THREE, "3 objectives need 3, joined by _, in the order helpfulness harmlessness conciseness"),
    "p_gapo_0.6_0.2_0.1": (THREE, "they do not sum to 1"),
    "p_gapo_0.2_0.8": (TWO, '"0.2_0.8" is not a number from 0 to 1'),
    "morlhf_0.5": ("reward/helpfulness", "there is one objective"),
    "ppo_harmlessness": ("reward/helpfulness", "there are ppo_helpfulness, safe_rlhf, "),
    "gapo_p1@imbalanced": ("reward/helpfulness", "no objective for the condition imbalanced: none is a cost"),
    "gapo_p1": (
        "harmlessness",
        "OBJECTIVES: harmlessness: none of reward/NAME, cost/NAME, function/NAME=FILE:FUNCTION",
    ),
    "gapo_p1#1": ("cost/a reward/b", "OBJECTIVES: reward/b: rewards come first, then costs, then functions"),
    "gapo_p1#2": ("reward/a cost/a", "OBJECTIVES: cost/a: there is another objective of this name"),
    "gapo_p1#3": ("reward/a-b", "OBJECTIVES: reward/a-b: a name is made of letters, digits and _"),
    "gapo_p1#4": (
        "reward/a=m.py:f",
        "OBJECTIVES: reward/a=m.py:f: a function is function/NAME=...; a model MODEL_NAME=",
    ),
}


@pytest.mark.parametrize("run", REFUSED)
def test_what_does_not_fit_the_objectives_is_refused_in_one_line(run: str) -> None:
    objectives, line = REFUSED[run]
    result = bash(f"{SETTLED} check_run '{run}'", OBJECTIVES=objectives)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ") and line in result.stderr


def test_a_model_that_is_there_is_named_by_its_objective(tmp_path: Path) -> None:
    """By its kind where there is one of it; never by a kind of which there are two."""
    show = 'objective_flags; printf "%s\\n" "${OBJECTIVE_FLAGS[@]}"'
    one = bash(SETTLED + show, REWARD_MODEL="org/r", MODEL_harmlessness="org/h", COST_MODEL="org/c")
    assert one.stdout.split() == ["--reward_model", "helpfulness=org/r", "--cost_model", "harmlessness=org/h"]
    two = {"OBJECTIVES": "reward/a reward/b function/c=m:f", "MODEL_a": "org/a"}
    found = bash(SETTLED + show, **two)
    assert found.stdout.split()[:4] == ["--reward_model", "a=org/a", "--reward_model", "b=out/reward/b"]
    refused = bash(SETTLED + show, **two, REWARD_MODEL="org/r")
    assert refused.returncode == 2
    assert refused.stderr == "error: REWARD_MODEL=org/r: there are several of them; MODEL_NAME=PATH tells which\n"
    assert bash(SETTLED + show, **two, REWARD_MODEL="org/r", MODEL_b="org/b").returncode == 0
    missing = bash("bash run_all.sh tiny", OBJECTIVES="reward/wit", RUNS="gapo_p1", OUTPUT=str(tmp_path / "out"))
    assert missing.returncode == 2
    script = "step2_reward/training_scripts/tiny_wit.sh"
    assert missing.stderr == f"error: OBJECTIVES: reward/wit: there is no {script}, and MODEL_wit names no model\n"


OWN = "my_method_{w} | Mine | {w} | front | #123456 P | | step3_gapo | sft scores | --algorithm cagrad {scope}"
OWN += " --gamma {GAMMA:-1}"


def test_rows_of_a_users_own_are_runs(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text(f"# mine\n{OWN}\n")
    (command,) = commands(TWO, ["my_method_0.3_full#7"], METHODS=str(tmp_path / "my.txt"), GAMMA="0.9")
    assert flag(command, "--algorithm") == ["cagrad"] and flag(command, "--gamma") == ["0.9"]
    assert flag(command, "--gradient_scope") == ["full"] and flag(command, "--seed") == ["7"]
    shown = bash("bash run_all.sh --help", METHODS=str(tmp_path / "my.txt"))
    assert "my_method_{w}" in shown.stdout and "gapo_p1" in shown.stdout


BAD_ROWS = {
    "eight columns": ("a | A | | method | #000000 o | | step3_gapo | sft", "my.txt:1: the columns are run | method | "),
    "a name that is none": ("a/b" + OWN[13:], 'my.txt:1: "a/b" cannot be the name of a run'),
    "a name that is taken": ("mgda" + OWN[13:], "my.txt:1: there is a row mgda already"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_what_is_no_row_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    row, line = BAD_ROWS[case]
    (tmp_path / "my.txt").write_text(row + "\n")
    result = bash("bash run_all.sh tiny", METHODS=str(tmp_path / "my.txt"), OUTPUT=str(tmp_path / "out"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and line in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
