"""What several test files share: running scripts on tiny models, and reading what they leave behind.

Most of a script's time goes into importing torch, transformers and DeepSpeed. `run_script` therefore forks
every process from one server that has imported them; arguments, environment variables, exit codes, stdout and
stderr are those of the real command. `run_command` and `launch` start the real thing and cost seconds each.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([
    "step3_gapo.main", "step2_reward.main", "eval.chat", "eval.judge", "eval.report", "utils.make_base",
    "torch.utils.tensorboard", "torch.utils.serialization", "setuptools", "tests.helpers",
    "transformers.models.gpt2.modeling_gpt2", "transformers.models.mistral.modeling_mistral",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.superoffload.superoffload_stage3", "tests.preloaded",
])  # fmt: skip
STEP3 = "step3_gapo/main.py"


@dataclass(frozen=True)
class Result:
    """How a command ended. With several ranks: the first exit code that is not 0, and all they said."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Workshop:
    """A folder with prompts, a base policy and score models, all tiny and random.

    Attributes:
        folder: room for outputs.
        prompts: jsonl of 64 prompts.
        base: policy, a Mistral decoder that ends some of its responses early.
        reward, cost: score models on the same trunk and tokenizer.
        foreign: a reward model with a tokenizer of its own.
    """

    folder: Path
    prompts: Path
    base: Path
    reward: Path
    cost: Path
    foreign: Path

    def step3_flags(self, name: str, **changes: Any) -> list[str]:
        """A small complete run of step 3 into `folder/name`; `changes` as in `flags`."""
        return flags(**{
            "actor_model": self.base, "reward_model": f"helpfulness={self.reward}",
            "cost_model": f"harmlessness={self.cost}", "algorithm": "gapo", "data": self.prompts,
            "max_prompt_length": 64, "max_new_tokens": 12, "per_device_prompt_batch_size": 8,
            "per_device_train_batch_size": 4, "max_steps": 2, "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3, "num_warmup_steps": 0, "print_interval": 1,
            "output_dir": self.folder / name,
        } | changes)  # fmt: skip

    def step3(self, name: str, ranks: int = 1, **changes: Any) -> Path:
        """Run step 3 from its beginning to a good end, in forked processes without pictures; its output folder."""
        result = run_script(STEP3, self.step3_flags(name, **{"fresh": True} | changes), ranks, pictures=False)
        assert result.code == 0, result.stderr
        return self.folder / name


def flags(**values: Any) -> list[str]:
    """Words of `--name value`: True is a switch, False and None leave it out, a tuple is several values."""
    words = []
    for name, value in values.items():
        if value is not None and value is not False:
            words.append(f"--{name}")
            words += [] if value is True else [str(v) for v in (value if isinstance(value, tuple) else (value,))]
    return words


def run_script(script: str, arguments: list[str], ranks: int = 1, pictures: bool = True) -> Result:
    """`python script arguments` from the repository's root, once a rank, in forked processes.

    Args:
        pictures: False: as where matplotlib is not installed; a picture a rollout takes a fifth of a tiny run's time.
    """
    return run_function(_as_main if pictures else _as_main_without_pictures, script, arguments, ranks=ranks)


def run_killed(
    script: str,
    arguments: list[str],
    ranks: int,
    now: Callable[[], bool],
    pictures: bool = True,
    timeout: float = 120,
) -> None:
    """`run_script` that is killed, all ranks at once, as soon as `now()` holds; fails if it ends before."""
    with tempfile.TemporaryDirectory() as folder:
        function = _as_main if pictures else _as_main_without_pictures
        processes = _start(function, (script, arguments), ranks, Path(folder))
        deadline = time.monotonic() + timeout
        while not now():
            assert all(process.is_alive() for process in processes), _said(Path(folder), ranks).stderr
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.005)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def run_function(function: Callable[..., None], *arguments: Any, ranks: int = 1, timeout: float = 300) -> Result:
    """Call an importable function in one forked process a rank, with the environment a launcher would set."""
    with tempfile.TemporaryDirectory() as folder:
        processes = _start(function, arguments, ranks, Path(folder))
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return _said(Path(folder), ranks, next((p.exitcode for p in processes if p.exitcode), 0))


def _start(function: Callable[..., None], arguments: tuple, ranks: int, folder: Path) -> list[Any]:
    """The processes of `ranks` calls, whose output goes to `folder`."""
    port = free_port()
    processes = [
        FORKSERVER.Process(
            target=_in_child, args=(function, arguments, _rank_variables(rank, ranks, port), folder / str(rank))
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _said(folder: Path, ranks: int, code: int = 0) -> Result:
    files = [[(folder / str(rank)).with_suffix(suffix) for rank in range(ranks)] for suffix in (".out", ".err")]
    return Result(code, *("".join(file.read_text() for file in part if file.exists()) for part in files))


def run_command(command: list[str], timeout: float = 300, **options: Any) -> Result:
    """A real process, from the repository's root unless `cwd` says otherwise; its children end with it."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        **({"cwd": ROOT} | options),
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Result(process.returncode, stdout, stderr)


def default_signals() -> None:
    """`preexec_fn` of a process that a test interrupts: it would inherit what nohup, or the background, ignores."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def launch(script: str, arguments: list[str], ranks: int) -> Result:
    """`deepspeed --num_accelerators ranks script arguments`."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    return run_command([*launcher, "--master_port", str(free_port()), script, *arguments])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl, one dictionary a step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """The metrics without the seconds they took."""
    return [{tag: value for tag, value in step.items() if not tag.startswith("time/")} for step in metrics]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The exported policy's parameters by name."""
    return load_file(folder / "model.safetensors")


def distance(first: Path, second: Path) -> float:
    """Largest difference between two exported policies, over the largest weight."""
    a, b = read_weights(first), read_weights(second)
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max()).item() for name in a)


def _rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    if ranks == 1:
        return {}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}


def _in_child(function: Callable[..., None], arguments: tuple, variables: dict[str, str], output: Path) -> None:
    os.environ.update(variables)
    os.chdir(ROOT)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        with output.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    function(*arguments)


def _as_main(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def _as_main_without_pictures(script: str, arguments: list[str]) -> None:
    sys.modules["matplotlib"] = None
    _as_main(script, arguments)
