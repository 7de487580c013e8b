"""The shell side: syntax and help of every script, and how run_all.sh's pieces run, skip, fail and are interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cases import cases
from tests.helpers import default_signals, run_script

ROOT = Path(__file__).resolve().parents[1]
SHELL_SCRIPTS = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.sh") if ".venv" not in path.parts)
MAINS = sorted(path.relative_to(ROOT) for path in ROOT.glob("step*/**/main.py"))
TOOLS = sorted(
    path.relative_to(ROOT)
    for folder in ("eval", "utils", "step2_reward")
    for path in (ROOT / folder).glob("*.py")
    if "\n    run_main(" in path.read_text() and path.name != "main.py"
)


def bash(script: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable} | variables
    return subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def pipeline(body: str) -> str:
    """A script whose pieces are `body`, as run_all.sh would run them."""
    return f"""
set -euo pipefail
PRESET=test
source {ROOT}/utils/launch/pieces.sh
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
    assert bad.stderr.splitlines() == [
        "error: huge: neither a preset (tiny, smoke, hh, three, dpo, cgpo, mistral_7b) nor --fresh or --dry_run"
    ]


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


def interpreter(folder: Path, **versions: str) -> Path:
    """One like that of the tests, but for a package of another version, or several."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(pytest.__file__).parents[1]))
    for name, version in versions.items():
        about = packages / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder / "bin/python"


def test_other_versions_are_taken_on_demand(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "other", torch="2.9.1", scipy="1.2")
    torch, scipy = (re.search(rf"^{name}==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)[1]
                    for name in ("torch", "scipy"))  # fmt: skip
    setup = "source utils/launch/setup_environment.sh"
    script = f"{setup}; bash -c '{setup}; echo $PYTHON is taken'"
    refused = bash(script, ROOT, PYTHON=str(python))
    assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1
    others = [f"torch 2.9.1 in place of {torch}", f"scipy 1.2 in place of {scipy}"]
    assert all(text in refused.stderr for text in [*others, "ANY_VERSIONS=1 takes it as it is"]), refused.stderr
    taken = bash(script, ROOT, PYTHON=str(python), ANY_VERSIONS="1")
    assert (taken.returncode, taken.stdout) == (0, f"{python} is taken\n")
    assert taken.stderr.count("\n") == 1 and taken.stderr.startswith("warning: "), "once, not by every script"
    assert all(text in taken.stderr for text in others)


def test_missing_packages_are_missing_at_any_version(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    result = bash("bash tests/run.sh", ROOT, PYTHON=str(bare / "bin/python"), ANY_VERSIONS="1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "missing torch==" in result.stderr


def test_an_unknown_run_is_refused(tmp_path: Path) -> None:
    result = bash("bash step3_gapo/training_scripts/tiny_policy.sh dpo", ROOT, OUTPUT=str(tmp_path))
    assert result.returncode == 2
    assert 'no method is known for the run "dpo"' in result.stderr


# Run name -> what its command line must hold, and what it must not.
RUN_FLAGS = {
    "ppo_harmlessness": (["--algorithm ppo --monitor helpfulness", "--seed 42 "], ["--score_scale", "--log_gradients"]),
    "safe_rlhf": (["--algorithm ppo_lagrangian --log_gradients --lambda_learning_rate 0.1"], ["--preference"]),
    "fast_rl@imbalanced": (["--algorithm fast_rl", "--score_scale harmlessness=4"], ["--gradient_scope"]),
    "gapo_p2#43": (["--rescale_power 2 --normalize_coefficients", "--seed 43 "], ["--gradient_scope"]),
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


UP = "/../../../escaped"
BAD_RUNS = ["gapo_p1@unbalanced", "ppo_full", "#43", "gapo_p1#", "gapo_p1#4#3", "morlhf_1.5", "p_gapo_../0.5_full",
            f"gapo_p1#{UP}", f"morlhf_0.5{UP}", f"p_gapo_{UP}", f"rewarded_soup_0.5@imbalanced#{UP}",
            f"rewarded_soup_{UP}", f"mgda@imbalanced{UP}"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("run", cases(BAD_RUNS, always=BAD_RUNS[::2]))
def test_a_bad_run_is_refused_before_anything_is_written(tmp_path: Path, run: str) -> None:
    for script in (f"step3_gapo/training_scripts/tiny_policy.sh '{run}'", "run_all.sh tiny"):
        result = bash(f"bash {script}", ROOT, OUTPUT=str(tmp_path / "a/b/c"), RUNS=f"gapo_p1 {run}")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert result.stderr.startswith("error: no ")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_launcher_keeps_the_exit_code_and_copies_the_output(tmp_path: Path) -> None:
    result = bash("bash step1_sft/training_scripts/tiny.sh", ROOT, OUTPUT=str(tmp_path))
    assert result.returncode == 2
    assert "error: --model_name_or_path" in result.stdout
    assert (tmp_path / "logs/sft.log").read_text() == result.stdout


def test_a_launcher_tells_how_a_command_ended_that_says_nothing(tmp_path: Path) -> None:
    for python, line in (("kill -9 $$", "was killed (SIGKILL: by hand, or there was no memory left)"),
                         ("kill -11 $$", "was ended by SIGSEGV"), ("exit 3", "ended with exit code 3")):  # fmt: skip
        script = (
            f"source utils/launch/launch.sh; PYTHON={tmp_path}/python; launch x.py {tmp_path}/log; echo not reached"
        )
        (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
        (tmp_path / "python").chmod(0o755)
        result = bash(f"bash -c '{script}' utils/launch/launch.sh", ROOT)
        assert result.returncode != 0 and "not reached" not in result.stdout
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: x.py {line}"] and errors[0] in (tmp_path / "log").read_text()


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


def started(script: str, token: str, folder: Path, processes: int) -> subprocess.Popen:
    """`script`, once so many processes that have `token` in their command line run."""
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=os.environ | {"JOBS": "2"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while len(sleeping(token)) < processes:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def sleeping(token: str) -> list[str]:
    return subprocess.run(["pgrep", "-f", f"sleep {token}"], capture_output=True, text=True).stdout.split()


TWO_PIECES = """
    stage one
    piece a 5 "" bash -c 'sleep {token}; true'
    piece b 5 "" sleep {token}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_every_process(tmp_path: Path, number: signal.Signals) -> None:
    token = f"86{os.getpid()}{int(number)}"  # a duration that no other process sleeps
    process = started(pipeline(TWO_PIECES.format(token=token)), token, tmp_path, 3)  # two of them bash -c
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == ["interrupted; what is finished stays, the same command goes on from there"]
    assert sleeping(token) == []


def test_pieces_end_when_the_pipeline_is_killed(tmp_path: Path) -> None:
    token = f"85{os.getpid()}"
    process = started(pipeline(TWO_PIECES.format(token=token)), token, tmp_path, 3)
    process.kill()
    _, errors = process.communicate(timeout=30)  # its pieces hold the other ends of the pipes
    line = f"error: the pipeline (process {process.pid}) is gone: {{}} ends"
    assert sorted(errors.splitlines()) == [line.format("a"), line.format("b")]
    assert sleeping(token) == []


def test_killing_a_piece_leaves_nothing_of_it(tmp_path: Path) -> None:
    token = f"84{os.getpid()}"
    script = pipeline(f"""
        stage one
        piece a 5 "" bash -c 'echo $PPID > piece; sleep {token}; true'
    """)
    process = started(script, token, tmp_path, 2)
    os.kill(int((tmp_path / "piece").read_text()), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (137, "error: a ended with exit code 137\n")
    assert sleeping(token) == []
