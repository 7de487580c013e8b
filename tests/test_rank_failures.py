"""One rank killed, stopped, stuck or failing: the whole run ends soon, says which rank and why, and leaves no process.

Small loops of collectives run in forked ranks, without a launcher to clean up after them. Step 3 runs under the real
launchers and is hit while it trains.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers import ROOT, STEP3, Result, Workshop, free_port, read_metrics, run_function
from utils import rank_watch
from utils.distributed import all_reduce_sum, init_distributed, rank, shutdown_distributed
from utils.errors import Failure, UserError, run_main, writing
from utils.rank_watch import beat, watch_ranks

SECONDS_TO_END = 60
KILLED = r"was killed or crashed \(process \d+ is gone\)"


# --- a loop of collectives


def forever() -> None:
    while True:
        time.sleep(0.1)


def kill_oneself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)  # until it has arrived


def raise_error(error: Exception) -> None:
    raise error


MISFORTUNES: dict[str, Callable[[], None]] = {
    "killed": lambda: kill_oneself(signal.SIGKILL),
    "stopped": lambda: kill_oneself(signal.SIGSTOP),
    "terminated": lambda: kill_oneself(signal.SIGTERM),
    "loops": forever,
    "mistake": lambda: raise_error(ZeroDivisionError("a mistake")),
    "failure": lambda: raise_error(Failure("the room is on fire")),
    "disk full": lambda: raise_error(OSError(28, "No space left on device", "/data/model.pt")),
    "bad input": lambda: raise_error(UserError("--data x.jsonl:3: no prompt")),
    "none": lambda: None,
}


def ranks_adding(folder: str, timeout: float, misfortune: str, steps: int = 5, pause: float = 0.0) -> None:
    """A run in which something befalls rank 1 in step 3."""

    rank_watch.SECONDS_TO_LEAVE = 2.0  # no launcher is there to see exit codes

    def main() -> None:
        init_distributed(timeout)
        watch_ranks(folder, timeout)
        for step in range(1, steps + 1):
            beat("adding", step)
            if (rank(), step) == (1, 3):
                MISFORTUNES[misfortune]()
            time.sleep(pause)
            assert all_reduce_sum(torch.ones(1)).item() == 3
        shutdown_distributed()
        print(f"rank {os.environ['RANK']} is done")

    run_main(main)


def run_ranks(folder: Path, misfortune: str, timeout: float = 600.0) -> tuple[Result, list[str]]:
    """The result, and its error lines; it must have come soon."""
    start = time.monotonic()
    result = run_function(ranks_adding, str(folder), timeout, misfortune, ranks=3, timeout=SECONDS_TO_END)
    assert time.monotonic() - start < SECONDS_TO_END - 20
    return result, [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    "misfortune, code, line",
    [
        ("killed", -9, rf'rank 1 {KILLED}; its last message: "step 3: adding" \d s ago'),
        ("terminated", 143, r'rank 1 was ended by SIGTERM; its last message: "step 3: adding"'),
        ("failure", 1, "the room is on fire"),
        ("disk full", 1, "/data/model.pt: No space left on device"),
        ("bad input", 2, "--data x.jsonl:3: no prompt"),
    ],
)  # fmt: skip
def test_one_line_says_what_befell_a_rank(tmp_path: Path, misfortune: str, code: int, line: str) -> None:
    result, errors = run_ranks(tmp_path, misfortune)
    assert len(errors) == 1 and re.fullmatch("error: " + line, errors[0]), result.stderr
    assert "Traceback" not in result.stderr and "is done" not in result.stdout
    assert result.code in (code, 1)  # the first of the ranks' codes that is not 0


def test_a_mistake_on_one_rank_shows_its_traceback_alone(tmp_path: Path) -> None:
    result, errors = run_ranks(tmp_path, "mistake")
    assert errors == ['error: rank 1 failed; its last message: "step 3: adding"'], result.stderr
    assert result.stderr.count("Traceback") == 1 and "ZeroDivisionError: a mistake" in result.stderr
    assert result.code == 1


@pytest.mark.parametrize(
    "misfortune, line",
    [
        ("stopped", r'rank 1 has not moved for 2 s \(its process is stopped\); its last message: "step 3: adding"'),
        ("loops", r'rank 1 has not moved for 2 s; its last message: "step 3: adding"'
                  r" in forever \(tests/test_rank_failures.py:\d+\)"),
    ],
)  # fmt: skip
def test_a_stuck_rank_is_named_and_killed(tmp_path: Path, misfortune: str, line: str) -> None:
    result, errors = run_ranks(tmp_path, misfortune, timeout=2.0)
    assert len(errors) == 1 and re.fullmatch(f"error: {line}; the others wait for it", errors[0]), result.stderr
    assert "Traceback" not in result.stderr and result.code != 0


def test_a_good_end_leaves_nothing_and_old_records_do_no_harm(tmp_path: Path) -> None:
    old = tmp_path / ".ranks"
    old.mkdir()
    (old / "said").touch()
    (old / "rank_1.json").write_text('{"rank": 1, "pid": 1, "message": "of a run before", "time": 0}')
    result, errors = run_ranks(tmp_path, "none", timeout=2.0)
    assert (result.code, result.stdout.count("is done"), errors) == (0, 3, [])
    assert not old.exists()


def test_a_run_that_is_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_function, ranks_adding, str(tmp_path), 2.0, "none", 30, 0.1, ranks=3, timeout=60)
        records = [tmp_path / f".ranks/rank_{number}.json" for number in range(3)]
        while not all(record.exists() and "step" in record.read_text() for record in records):
            assert not run.done(), run.result().stderr
            time.sleep(0.02)
        processes = [json.loads(record.read_text())["pid"] for record in records]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                os.kill(process, number)
            time.sleep(4)
    result = run.result()
    assert (result.code, result.stdout.count("is done"), result.stderr) == (0, 3, "")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="^model.pt: No space left on device$"), writing("model.pt"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), writing("model.pt"):
        raise ZeroDivisionError
    if Path("/dev/full").exists():
        with pytest.raises(Failure, match="^model.pt: No space left on device$"), writing("model.pt"):
            with Path("/dev/full").open("wb") as file:
                torch.save({"weight": torch.zeros(100_000)}, file)


# --- step 3 under the real launchers


@dataclass
class Run:
    """A command that trains, with all it started: they share a mark in their environment."""

    process: subprocess.Popen
    mark: str
    output: Path
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Whatever of it is alive."""
        return [process for process in psutil.process_iter() if self.mark in environment(process).values()]

    def rank(self, number: int) -> psutil.Process:
        return next(process for process in self.processes() if environment(process).get("RANK") == str(number))

    def wait_until_it_trains(self, steps: int = 2) -> None:
        deadline = time.monotonic() + 180
        metrics = self.output / "metrics.jsonl"
        while not metrics.exists() or len(read_metrics(self.output)) < steps:
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def ended(self) -> tuple[int, list[str]]:
        """Exit code and error lines; no process may be left."""
        hit = time.monotonic()
        code = self.process.wait(timeout=SECONDS_TO_END)
        while self.processes():
            assert time.monotonic() - hit < SECONDS_TO_END, self.processes()
            time.sleep(0.1)
        log = self.log.read_text()
        assert "Traceback" not in log
        return code, [line for line in log.splitlines() if line.startswith("error: ")]


def environment(process: psutil.Process) -> dict[str, str]:
    """Environment variables; none of a process that has ended."""
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:
        return {}


@pytest.fixture
def train(workshop: Workshop, request: pytest.FixtureRequest):
    """Start `command` with the flags of a long run of step 3, and end all of it after the test."""
    runs: list[Run] = []

    def start(*command: str, **changes: object) -> Run:
        name = f"rank_failures_{len(list(workshop.folder.glob('rank_failures_*')))}"
        words = workshop.step3_flags(name, num_train_epochs=1000, max_steps=2000, checkpoint_interval=0, **changes)
        mark, log = uuid.uuid4().hex, workshop.folder / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *words], cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
                env=os.environ | {"PYTHON": sys.executable, "TEST_MARK": mark},
            )  # fmt: skip
        runs.append(Run(process, mark, workshop.folder / name, log))
        runs[-1].wait_until_it_trains()
        return runs[-1]

    yield start
    for run in runs:
        for process in run.processes():
            process.kill()
        run.process.wait()


def deepspeed(ranks: int) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    return [*launcher, "--master_port", str(free_port()), STEP3]


def launch_script(ranks: int, folder: Path) -> list[str]:
    """As a training script does it."""
    script = f'source utils/launch.sh; RANKS={ranks}; launch {STEP3} {folder}/launch.log "$@"; exit'
    return ["bash", "-c", script, "utils/launch.sh"]


def test_killing_one_of_three_ranks_ends_the_command(train: Callable[..., Run]) -> None:
    run = train(*deepspeed(3), zero_stage=2)
    run.rank(2).kill()
    code, errors = run.ended()
    assert code != 0
    line = rf'error: rank 2 {KILLED}; its last message: "step \d+: .*" \d s ago'
    assert len(errors) == 1 and re.fullmatch(line, errors[0]), run.log.read_text()


def test_killing_the_launcher_of_the_ranks_ends_them_and_is_no_good_end(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    run = train(*launch_script(2, tmp_path))
    parent = run.rank(0).parent()
    assert "deepspeed.launcher.launch" in parent.cmdline()
    parent.kill()
    code, errors = run.ended()
    assert code != 0
    assert errors == [f"error: the launcher (process {parent.pid}) is gone: its ranks end",
                      "error: the launcher of the ranks was killed"]  # fmt: skip


def test_killing_the_shell_script_ends_its_rank(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train(*launch_script(1, tmp_path))
    run.process.kill()
    code, _ = run.ended()
    assert code == -signal.SIGKILL
    line = f"error: the launcher (process {run.process.pid}) is gone: its ranks end"
    assert line in (tmp_path / "launch.log").read_text()
