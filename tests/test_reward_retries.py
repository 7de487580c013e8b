"""Reward functions that fail for a while, or for good: exceptions, and a server that is killed in mid-run."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, STEP3, Result, Workshop, flags, free_port, read_metrics, run_script, untimed
from tests.test_chat import talk
from tests.test_reward_functions import rule_file
from utils.scoring.reward_functions import Retries

pytestmark = pytest.mark.slow

FLAKY = """
CALLS, TRIES = [], []

def often(prompts, responses):  # two tries of three
    CALLS.append(1)
    if len(CALLS) % 3:
        raise ConnectionError("\\033[2Jrefused\\nagain")
    return [len(response) for response in responses]

def midway(prompts, responses):  # once, after the first value
    TRIES.append(1)
    for number, response in enumerate(responses):
        if len(TRIES) == 2 and number:
            raise SystemExit(3)
        yield len(response)
"""


def write_responses(path: Path) -> list[str]:
    """A file of three responses, like those of eval/generate.py; the responses."""
    texts = ["yes " * number for number in range(1, 4)]
    rows = [
        {"prompt": "?", "messages": [{"role": "user", "content": "?"}], "source": f"test.jsonl:{number}",
         "response": text, "length": 3, "finished": True, "kl": 0.0}
        for number, text in enumerate(texts, start=1)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


def score(folder: Path, **options: Any) -> Result:
    return run_script("eval/score.py", flags(responses=folder / "run.jsonl", output_dir=folder / "eval", **options))


def test_functions_that_fail_are_called_again(tmp_path: Path) -> None:
    """Several of them, each failure in one line; the values are those of the try that succeeds."""
    texts, rules = write_responses(tmp_path / "run.jsonl"), tmp_path / "rules.py"
    rules.write_text(FLAKY)
    scored = score(
        tmp_path, reward_function=(f"often={rules}:often", f"midway={rules}:midway"), reward_retries=2,
        reward_retry_wait=0.1,
    )  # fmt: skip
    assert scored.code == 0 and not scored.stderr, scored.stderr
    refused, ended = "ConnectionError: \N{REPLACEMENT CHARACTER}[2Jrefused again", "SystemExit: 3"
    one, all_of_them = "test.jsonl:1", "test.jsonl:1 and 2 more"
    failures = [("often", 1, one, refused, 0.1), ("often", 2, one, refused, 0.2),
                ("often", 1, all_of_them, refused, 0.1), ("often", 2, all_of_them, refused, 0.2),
                ("midway", 1, all_of_them, ended, 0.1)]  # fmt: skip
    assert [line for line in scored.stdout.splitlines() if "fails" in line] == [
        f"--reward_function {name}={rules}:{name}: try {number} of 3 fails on the responses to {place} ({reason});"
        f" next try in {seconds} s"
        for name, number, place, reason, seconds in failures
    ]
    rows = json.loads((tmp_path / "eval/run.json").read_text())["rows"]
    assert [row["scores"] for row in rows] == [dict.fromkeys(("often", "midway"), len(text)) for text in texts]


@pytest.mark.parametrize(
    "body, retries, told, reason",
    [
        ("raise ConnectionError('refused')", 0, 0, "fails on the responses to test.jsonl:1 (ConnectionError: refused)"),
        ("raise TimeoutError", 2, 2, "fails 3 times in a row, at last on the responses to test.jsonl:1 (TimeoutError)"),
        ("return [0.0, 1.0]", 2, 0, "2 values for 1 responses"),
        ("return responses", 2, 0, "no numbers for the responses to test.jsonl:1 (TypeError: 'yes ' is text"),
        ("return [float('nan')]", 2, 0, "is nan, no finite"),
    ],
)
def test_the_end_of_a_function_that_fails(tmp_path: Path, body: str, retries: int, told: int, reason: str) -> None:
    """Exceptions are given another chance, wrong results are not."""
    write_responses(tmp_path / "run.jsonl")
    rule = f"rule={rule_file(tmp_path, body)}:rule"
    ended = score(tmp_path, reward_function=rule, reward_retries=retries, reward_retry_wait=0)
    assert ended.code == 2 and ended.stdout.count("next try in 0 s") == told
    assert ended.stderr.count("\n") == 1 and reason in ended.stderr, ended.stderr


def test_in_a_chat(workshop: Workshop, tmp_path: Path) -> None:
    """What fails for good costs the answer its value, not the conversation."""
    (tmp_path / "rules.py").write_text(FLAKY)
    ended = talk(
        "Hello!\nAnd now?\n", policy=f"base={workshop.base}", reward_function=f"often={tmp_path / 'rules.py'}:often",
        reward_retries=1, reward_retry_wait=0,
    )  # fmt: skip
    assert ended.code == 0 and not ended.stderr, ended.stderr
    assert "error: often: --reward_function often=" in ended.stdout and "[often +" in ended.stdout


def test_pauses_double_up_to_a_minute() -> None:
    assert [Retries(10).pause(failed) for failed in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert Retries(2, 300.0).pause(2) == 300 and Retries(10**9).pause(10**9) == 60


# --- a server


# The function of examples/http_reward.py; it draws random numbers before it fails, and leaves a file when it does.
ASKING = """
import os
from pathlib import Path

import torch

os.environ["REWARD_URL"] = "http://127.0.0.1:{port}"
from examples.http_reward import ask

def rule(prompts, responses):
    torch.rand(7)
    try:
        return ask(prompts, responses)
    except Exception:
        Path(__file__).with_name("failed").touch()
        raise
"""


class Served:
    """The example's server in a process of its own."""

    def __init__(self):
        self.port = free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "examples/http_reward.py", "--serve", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()
    yield served
    served.kill()


def wait_until(moment: Callable[[], bool], run: Future) -> None:
    while not moment():
        assert not run.done(), "the run ended before"
        time.sleep(0.005)


def test_a_server_that_is_killed_in_mid_run(workshop: Workshop, tmp_path: Path, server: Served) -> None:
    """The run waits until it is back and has the uninterrupted one's result; one that does not wait can go on."""
    rules, failed = tmp_path / "rules.py", tmp_path / "failed"
    rules.write_text(ASKING.format(port=server.port))
    options = {"reward_model": None, "reward_function": f"rule={rules}:rule", "max_steps": 6, "num_train_epochs": 9,
               "checkpoint_interval": 2, "reward_retry_wait": 0.2, "reward_retries": 9}  # fmt: skip
    whole, waiting = workshop.step3("server_whole", **options), workshop.folder / "server_waiting"
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_script, STEP3, workshop.step3_flags("server_waiting", **options))
        wait_until((waiting / "checkpoints/step_00000002").exists, run)
        server.kill()
        wait_until(failed.exists, run)
        server.start()
    assert run.result().code == 0, run.result().stderr
    assert f"--reward_function rule={rules}:rule: try 1 of 10 fails on the responses to {workshop.prompts}:" in (
        run.result().stdout
    )
    assert_same_result(whole, waiting)

    ending, arguments = workshop.folder / "server_ending", workshop.step3_flags("server_ending", **options)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_script, STEP3, [*arguments, "--reward_retries", "0"])
        wait_until((ending / "checkpoints/step_00000002").exists, run)
        server.kill()
    assert run.result().code == 2 and run.result().stderr.count("\n") == 1, run.result().stderr
    assert f"--reward_function rule={rules}:rule: fails on the responses" in run.result().stderr
    server.start()
    again = run_script(STEP3, arguments)
    assert again.code == 0 and f"going on from {ending / 'checkpoints/step_0000000'}" in again.stdout, again.stderr
    assert_same_result(whole, ending)


def assert_same_result(first: Path, second: Path) -> None:
    """Weights byte for byte; metrics without their seconds."""
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert untimed(read_metrics(first)) == untimed(read_metrics(second))
