"""The shell side: syntax and help of every script, and how run_all.sh's pieces run, skip, fail and are interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import run_script

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.sh") if ".venv" not in path.parts)
MAINS = sorted(path.relative_to(ROOT) for path in ROOT.glob("step*/main.py"))
TOOLS = sorted(
    path.relative_to(ROOT)
    for folder in ("eval", "utils")
    for path in (ROOT / folder).glob("*.py")
    if "\n    run_main(" in path.read_text()
)


def bash(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def pipeline(body: str) -> str:
    """A script whose pieces are `body`, as run_all.sh would run them."""
    return f"""
set -euo pipefail
PRESET=test
source {ROOT}/utils/pieces.sh
pipeline() {{
{body}
}}
run_pipeline
echo finished
"""


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=str)
def test_shell_scripts_parse(script: Path) -> None:
    result = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("script", MAINS + TOOLS, ids=str)
def test_every_script_explains_itself(script: Path) -> None:
    result = run_script(str(script), ["--help"])
    assert result.code == 0, result.stderr
    assert result.stdout.startswith(f"usage: {script.name}")


def test_run_all_help_and_bad_arguments() -> None:
    shown = bash("bash run_all.sh --help", ROOT)
    assert shown.returncode == 0 and "--fresh" in shown.stdout and "smoke" in shown.stdout
    bad = bash("bash run_all.sh huge", ROOT)
    assert bad.returncode == 2
    assert bad.stderr.splitlines() == ["error: huge: neither a preset (tiny, smoke, hh) nor --fresh"]


def test_preset_hh_names_what_is_missing(tmp_path: Path) -> None:
    result = bash("bash run_all.sh hh", ROOT, DATA_DIR=str(tmp_path / "nowhere"), OUTPUT=str(tmp_path / "hh"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "DATA_DIR" in result.stderr
    assert not (tmp_path / "hh").exists()


def test_an_environment_without_the_packages_is_refused_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    result = bash("bash run_all.sh smoke", ROOT, PYTHON=str(bare / "bin/python"), OUTPUT=str(tmp_path / "out"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "missing torch==" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    result = bash("bash step3_gapo/training_scripts/tiny_policy.sh dpo", ROOT, OUTPUT=str(tmp_path))
    assert result.returncode == 2
    assert 'no method is known for the run "dpo"' in result.stderr


# Run name -> what its command line must hold, and what it must not.
RUN_FLAGS = {
    "ppo_harmlessness": (["--algorithm ppo --monitor helpfulness", "--seed 42 "], ["--score_scale", "--log_gradients"]),
    "safe_rlhf": (["--algorithm ppo_lagrangian --log_gradients --lambda_learning_rate 0.1"], ["--preference"]),
    "fast_rl@imbalanced": (["--algorithm fast_rl", "--score_scale harmlessness=4"], ["--gradient_scope"]),
    "gapo_p2#43": (["--rescale_power 2 --normalize_coefficients --gradient_scope last_layer", "--seed 43 "], []),
    "p_gapo_0.2_full@imbalanced#7": (
        ["--preference helpfulness=0.2 harmlessness=0.8 --gradient_scope full", "--score_scale harmlessness=4",
         "--seed 7 "],
        [],
    ),
    "rewarded_soup_0.4@imbalanced#43": (
        ["eval/soup.py", "helpfulness=OUT/policies/ppo_helpfulness#43",
         "harmlessness=OUT/policies/ppo_harmlessness@imbalanced#43", "--weight helpfulness=0.4 harmlessness=0.6"],
        ["step3_gapo/main.py"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUN_FLAGS)
def test_a_run_name_stands_for_its_flags(run: str) -> None:
    script = Path("step3_gapo/training_scripts/tiny_policy.sh").read_text()
    script = script.replace('$(dirname "${BASH_SOURCE[0]}")', "step3_gapo/training_scripts")
    script = script.replace('train_policy "${1:-}"; exit', f"launch() {{ echo \"$@\"; }}; train_policy '{run}'")
    result = bash(script, ROOT, OUTPUT="OUT")
    assert result.returncode == 0, result.stderr
    held, missing = RUN_FLAGS[run]
    assert all(flags in result.stdout for flags in [*held, f"--output_dir OUT/policies/{run}\n"]), result.stdout
    assert not any(flag in result.stdout for flag in missing), result.stdout


@pytest.mark.parametrize("run", ["gapo_p1@unbalanced", "ppo_full", "#43"])
def test_an_unknown_condition_or_run_is_refused(tmp_path: Path, run: str) -> None:
    result = bash(f"bash step3_gapo/training_scripts/tiny_policy.sh '{run}'", ROOT, OUTPUT=str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: no ")


def test_a_number_of_seeds_is_asked_for(tmp_path: Path) -> None:
    result = bash("bash run_all.sh smoke", ROOT, SEEDS="few", OUTPUT=str(tmp_path / "out"))
    assert (result.returncode, result.stderr) == (2, "error: SEEDS=few: not a number of seeds\n")
    assert not (tmp_path / "out").exists()


def test_a_launcher_keeps_the_exit_code_and_copies_the_output(tmp_path: Path) -> None:
    result = bash("bash step1_sft/training_scripts/tiny.sh", ROOT, OUTPUT=str(tmp_path))
    assert result.returncode == 2
    assert "error: --model_name_or_path" in result.stdout
    assert (tmp_path / "logs/sft.log").read_text() == result.stdout


def test_pieces_run_side_by_side_and_finished_ones_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    script = pipeline("""
        stage one
        piece old 5 done touch must_not_run
        piece a 5 a.txt bash -c 'touch a; until [ -e b ]; do sleep 0.1; done; echo from a; touch a.txt'
        piece b 5 b.txt bash -c 'touch b; until [ -e a ]; do sleep 0.1; done; touch b.txt'
        stage two
        piece c 5 c.txt bash -c 'test -e a.txt && test -e b.txt && touch c.txt'
    """)
    result = bash(script, tmp_path, JOBS="2")  # a and b wait for each other
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "must_not_run").exists() and (tmp_path / "c.txt").exists()
    assert "[old] is there already" in result.stdout and "[a] from a" in result.stdout
    assert result.stdout.splitlines()[-1] == "finished"


def test_a_failing_piece_ends_the_others_and_keeps_its_exit_code(tmp_path: Path) -> None:
    script = pipeline("""
        stage one
        piece slow 5 "" bash -c 'sleep 30 && touch too_late'
        piece bad 5 "" bash -c 'echo reason >&2; exit 7'
        stage two
        piece never 5 "" touch never
    """)
    result = bash(script, tmp_path, JOBS="2")
    assert result.returncode == 7
    assert "error: bad ended with exit code 7" in result.stderr and "[bad] reason" in result.stdout
    assert not (tmp_path / "never").exists() and not (tmp_path / "too_late").exists()


def test_an_interrupt_ends_every_process(tmp_path: Path) -> None:
    token = f"86{os.getpid()}"  # a duration that no other process sleeps
    script = pipeline(f"""
        stage one
        piece a 5 "" bash -c 'sleep {token}; true'
        piece b 5 "" sleep {token}
    """)
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"JOBS": "2"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored when the tests run in the background
    )  # fmt: skip
    sleeping = ["pgrep", "-f", f"sleep {token}"]
    deadline = time.monotonic() + 20
    while len(subprocess.run(sleeping, capture_output=True, text=True).stdout.split()) < 3:  # two of them bash -c
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == ["interrupted; what is finished stays, the same command goes on from there"]
    assert subprocess.run(sleeping, capture_output=True, text=True).stdout == ""
