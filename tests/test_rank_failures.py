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

from tests.cases import EXHAUSTIVE, cases
from tests.helpers import ROOT, STEP3, Result, Workshop, free_port, launch, read_metrics, run_function
from utils.process import errors, rank_watch
from utils.process.distributed import all_reduce_sum, init_distributed, rank, shutdown_distributed
from utils.process.errors import Failure, UserError, run_main, writing
from utils.process.rank_watch import beat, watch_ranks
from utils.scoring.reward_functions import Retries, RewardFunction

pytestmark = pytest.mark.slow

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


def works_alone(phases: int) -> None:
    for number in range(phases):
        beat(f"part {number}")
        time.sleep(0.6)


def calls_again() -> None:
    def rule(prompts: list[str], responses: list[str]) -> list[float]:
        raise ConnectionError("refused")

    with pytest.raises(UserError, match="fails 2 times in a row"):
        RewardFunction("--reward_function rule=here:rule", rule, False, Retries(1, 4.0))([], [], [], ["here:1"])


MISFORTUNES: dict[str, Callable[[], None]] = {
    "killed": lambda: kill_oneself(signal.SIGKILL),
    "stopped": lambda: kill_oneself(signal.SIGSTOP),
    "terminated": lambda: kill_oneself(signal.SIGTERM),
    "loops": forever,
    "mistake": lambda: raise_error(ZeroDivisionError("a mistake")),
    "failure": lambda: raise_error(Failure("the room is on fire")),
    "disk full": lambda: raise_error(OSError(28, "No space left on device", "/data/model.pt")),
    "bad input": lambda: raise_error(UserError("--data x.jsonl:3: no prompt")),
    "long work": lambda: works_alone(phases=8),
    "a function that fails": calls_again,
    "none": lambda: None,
}


def ranks_adding(
    folder: str, timeout: float, misfortune: str, steps: int = 5, pause: float = 0.0, befallen: tuple[int, ...] = (1,)
) -> None:
    """A run in which something befalls rank 1, or others, in step 3."""

    rank_watch.SECONDS_TO_LEAVE = 2.0  # no launcher is there to see exit codes
    errors.SECONDS_FOR_RANK_0 = 1.0

    def main() -> None:
        init_distributed(timeout)
        watch_ranks(folder, timeout)
        for step in range(1, steps + 1):
            beat("adding", step)
            if rank() in befallen and step == 3:
                MISFORTUNES[misfortune]()
            time.sleep(pause)
            assert all_reduce_sum(torch.ones(1)).item() == 3
        shutdown_distributed()
        print(f"rank {os.environ['RANK']} is done")

    run_main(main)


def run_ranks(
    folder: Path, misfortune: str, timeout: float = 600.0, befallen: tuple[int, ...] = (1,)
) -> tuple[Result, list[str]]:
    """The result, and its error lines; it must have come soon."""
    start = time.monotonic()
    arguments = (str(folder), timeout, misfortune, 5, 0.0, befallen)
    result = run_function(ranks_adding, *arguments, ranks=3, timeout=SECONDS_TO_END)
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


def test_of_several_that_do_not_move_none_is_accused(tmp_path: Path) -> None:
    result, errors = run_ranks(tmp_path, "loops", timeout=2.0, befallen=(0, 2))
    line = (
        r'one of the ranks 0, 2 has not moved for 2 s, perhaps rank [02]; its last message: "step 3: adding" in forever'
    )
    assert len(errors) == 1 and re.match(f"error: {line}", errors[0]), result.stderr


@pytest.mark.parametrize("misfortune", ["long work", "a function that fails"])
def test_work_of_one_rank_that_others_wait_for_may_take_long(tmp_path: Path, misfortune: str) -> None:
    result, errors = run_ranks(tmp_path, misfortune, timeout=2.0)
    assert (result.code, result.stdout.count("is done"), errors) == (0, 3, [])


def single_rank(folder: str) -> None:
    os.environ["LAUNCHER_PIDS"] = str(os.getppid())
    init_distributed(1.0)
    watch_ranks(folder, 1.0)
    time.sleep(4)
    shutdown_distributed()
    print("done")


def test_a_single_rank_may_take_its_time(tmp_path: Path) -> None:
    result = run_function(single_rank, str(tmp_path), timeout=SECONDS_TO_END)
    assert (result.code, result.stdout, result.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("misfortune, code", [("bad input", 2), ("failure", 1), ("mistake", 1)])
def test_ranks_that_fail_alike_end_with_their_exit_code(tmp_path: Path, misfortune: str, code: int) -> None:
    result, errors = run_ranks(tmp_path, misfortune, befallen=(0, 1, 2))
    assert result.code == code
    assert 1 <= len(errors) <= (3 if misfortune == "mistake" else 1)


# --- bad input before there is a process group


MEET_IT = """
import sys, time
from utils.cli.arguments import Parser, add_deepspeed_arguments
from utils.process.errors import fail
parser = Parser()
if "a stage" in sys.argv:
    add_deepspeed_arguments(parser)
print("ready", flush=True)
sys.stdin.readline()
if "meets it" in sys.argv:
    fail("bad")
time.sleep(60)
"""


def ranks_meeting(*words: tuple[str, ...], **variables: str) -> list[subprocess.Popen]:
    """Ranks of one launch, each with its own words, that all have got as far as bad input."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET_IT, *said], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"RANK": str(rank), "MASTER_PORT": str(os.getpid())} | variables
            | ({"LOCAL_RANK": str(rank)} if "a stage" in said else {}),
        )
        for rank, said in enumerate(words)
    ]  # fmt: skip
    for process in ranks:
        assert process.stdout.readline() == "ready\n"
    for process in ranks:
        process.stdin.write("\n")
        process.stdin.flush()
    return ranks


def test_a_rank_that_alone_meets_bad_input_says_so() -> None:
    first, *others = ranks_meeting(("a stage",), ("a stage", "meets it"), ("a stage",))
    try:
        assert (others[0].communicate(timeout=SECONDS_TO_END)[1], others[0].returncode) == ("error: bad\n", 2)
    finally:
        for process in (first, *others):
            process.kill()
            process.communicate()


def test_ranks_that_meet_bad_input_alike_speak_with_one_voice() -> None:
    ranks = ranks_meeting(*[("a stage", "meets it")] * 2)
    assert [process.communicate(timeout=SECONDS_TO_END)[1] for process in ranks] == ["error: bad\n", ""]
    assert [process.returncode for process in ranks] == [2, 2]


def test_a_script_that_forms_no_group_ignores_the_ranks_of_its_surroundings() -> None:
    ranks = ranks_meeting(("meets it",), ("meets it",), LOCAL_RANK="1")
    assert [process.communicate(timeout=4)[1] for process in ranks] == ["error: bad\n"] * 2


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

    def start(*command: str, begun: bool = True, **changes: object) -> Run:
        name = f"rank_failures_{len(list(workshop.folder.glob('rank_failures_*')))}"
        words = workshop.step3_flags(name, num_train_epochs=1000, max_steps=2000, checkpoint_interval=0, **changes)
        mark, log = uuid.uuid4().hex, workshop.folder / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *words], cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
                env=os.environ | {"PYTHON": sys.executable, "TEST_MARK": mark},
            )  # fmt: skip
        runs.append(Run(process, mark, workshop.folder / name, log))
        if begun:
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
    script = f'source utils/launch/launch.sh; RANKS={ranks}; launch {STEP3} {folder}/launch.log "$@"; exit'
    return ["bash", "-c", script, "utils/launch/launch.sh"]


@pytest.mark.parametrize("ranks", cases([2, 3], always=[2]))
def test_killing_one_of_several_ranks_ends_the_command(train: Callable[..., Run], ranks: int) -> None:
    run = train(*deepspeed(ranks), zero_stage=2)
    run.rank(ranks - 1).kill()
    code, errors = run.ended()
    assert code != 0
    line = rf'error: rank {ranks - 1} {KILLED}; its last message: "step \d+: .*" \d s ago'
    assert len(errors) == 1 and re.fullmatch(line, errors[0]), run.log.read_text()


@EXHAUSTIVE
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


@EXHAUSTIVE
def test_killing_the_shell_script_ends_its_rank(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train(*launch_script(1, tmp_path))
    run.process.kill()
    code, _ = run.ended()
    assert code == -signal.SIGKILL
    line = f"error: the launcher (process {run.process.pid}) is gone: its ranks end"
    assert line in (tmp_path / "launch.log").read_text()


@EXHAUSTIVE
def test_killing_a_rank_that_has_not_got_far_is_told(train: Callable[..., Run], tmp_path: Path) -> None:
    run = train(*launch_script(2, tmp_path), begun=False)
    deadline = time.monotonic() + SECONDS_TO_END
    while len(ranks := [process for process in run.processes() if environment(process).get("RANK")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks[1].kill()
    code, errors = run.ended()
    assert code != 0
    assert errors == [f"error: a rank of {STEP3} was killed (SIGKILL: by hand, or there was no memory left)"]


@pytest.mark.parametrize("attempt", cases([1, 2], always=[1]))
def test_the_launcher_passes_on_what_ranks_refuse_together(workshop: Workshop, attempt: int) -> None:
    """Beyond the flags: a checkpoint of another run, which the ranks meet when they are a group.

    Its threads abort an interpreter that shuts down around them, every third time or so: two tries.
    """
    name = f"refused_together_{attempt}"
    workshop.step3(name, ranks=2, zero_stage=2, max_steps=1, checkpoint_interval=1, keep_checkpoints=True)
    output = workshop.folder / name
    (output / "config.json").unlink()
    before = contents(output)
    arguments = workshop.step3_flags(name, zero_stage=2, max_steps=1, checkpoint_interval=1, seed=7)
    result = launch(STEP3, arguments, 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.code == 2 and len(errors) == 1 and "--seed 42 -> 7" in errors[0], result.stderr
    assert contents(output) == before


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the ranks' records."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != ".ranks"}
