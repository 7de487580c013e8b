"""A NaN anywhere on any rank skips the step of every engine; nothing moves, all ranks agree, and it is counted."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from step3_gapo.experience import Experience
from step3_gapo.rollout import make_rollout
from step3_gapo.update import StepBatches, optimizer_step
from tests.cases import cases
from tests.helpers import ROOT, Workshop, default_signals, flags, run_function, run_script
from tests.test_resume import STEP1, supervised_flags
from tests.test_step3_engine import build
from utils.data.encoding import Encoded
from utils.data.records import Dialogue
from utils.engines.engines import Engine, gathered_weights, make_training_engine
from utils.process.distributed import init_distributed, rank, shutdown_distributed, world_size
from utils.supervised.steps import optimizer_step as supervised_step
from utils.supervised.task import Task

pytestmark = pytest.mark.slow


def spoil_returns(experience: Experience, name: str) -> None:
    experience.returns[name][0, 0] = torch.nan


def spoil_advantages(experience: Experience, name: str) -> None:
    experience.advantages[name][0, 0] = torch.nan


SPOILED = {
    "a critic": (spoil_returns, "the gradient of the critic of harmlessness"),
    "the policy": (spoil_advantages, "the gradient of the policy"),
}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def all_weights(engines: dict[str, Engine]) -> dict[str, torch.Tensor]:
    parts = {name: gathered_weights(engine.module) for name, engine in engines.items()}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def check_step3(arguments: list[str], spoil: Callable[[Experience, str], None], expected: str) -> None:
    """A step that is spoiled on the last rank, then a good one."""
    args, engine, actor_update, prompts = build(arguments)
    good = make_rollout(engine, prompts[rank() :: world_size()][:4], actor_update.algorithm, args).experience
    bad = good.select(torch.arange(4))
    if rank() == world_size() - 1:
        spoil(bad, "harmlessness")
    before = all_weights(engine.trained())
    scalars, not_finite = optimizer_step(actor_update, engine.critics, StepBatches([bad]), True, args)
    assert (scalars, not_finite) == ({}, expected), not_finite
    assert same(before, all_weights(engine.trained()))
    scalars, not_finite = optimizer_step(actor_update, engine.critics, StepBatches([good]), True, args)
    assert not_finite is None and scalars["loss/critic/harmlessness"] > 0
    moved = all_weights(engine.trained())
    for name in engine.trained():
        parts = [{k: v for k, v in w.items() if k.startswith(f"{name}.")} for w in (before, moved)]
        assert rank() or not same(*parts), f"{name} took no step"
    shutdown_distributed()


@pytest.mark.parametrize("changes", [{"zero_stage": 2}, {"zero_stage": 3, "gradient_scope": "full"}])
@pytest.mark.parametrize("what", cases(SPOILED, always=["the policy"]))
def test_policy_and_critics_skip_together(
    workshop: Workshop, tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    arguments = workshop.step3_flags("unused", output_dir=tmp_path, **changes)
    result = run_function(check_step3, arguments, *SPOILED[what], ranks=2)
    assert result.code == 0, result.stderr


def check_supervised(arguments: list[str]) -> None:
    from step1_sft.main import parse_args

    args = parse_args(arguments)
    init_distributed()
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1, bias=False)
    engine = make_training_engine(layer, args, 0.1, 100)
    examples = [Encoded(Dialogue([], "", ""), [], ([0],))]

    def sums_of(value: float) -> Callable[[list[Encoded]], dict[str, torch.Tensor]]:
        return lambda _: {"loss": engine(torch.tensor([[value, 1.0]])).sum()}

    def step(value: float) -> tuple[dict[str, float], str | None]:
        task = Task(examples, units=lambda _: 1, sums=sums_of(value), validate=dict, shown=())
        return supervised_step(engine, [examples, examples], task, 1.0)

    before = gathered_weights(layer)
    assert step(torch.nan if rank() == world_size() - 1 else 1.0) == ({}, "the gradient")
    assert same(before, gathered_weights(layer))
    figures, not_finite = step(2.0)
    assert not_finite is None and figures["loss"] == figures["loss"]
    assert rank() or not same(before, gathered_weights(layer))
    shutdown_distributed()


@pytest.mark.parametrize("zero_stage", cases([0, 2, 3], always=[0, 3]))
def test_supervised_stages_skip_on_all_ranks(workshop: Workshop, tmp_path: Path, zero_stage: int) -> None:
    arguments = flags(
        model_name_or_path=workshop.base, data="unused", output_dir=tmp_path, zero_stage=zero_stage,
        per_device_train_batch_size=1, gradient_accumulation_steps=2, num_warmup_steps=0,
    )  # fmt: skip
    result = run_function(check_supervised, arguments, ranks=2)
    assert result.code == 0, result.stderr


def test_a_run_that_only_skips_names_the_last_good_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    """A step so long that every logit is infinite after it; its own checkpoint is not the last good one."""
    flags_of_run = {"num_warmup_steps": 3, "lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 0,
                    "max_skipped_steps": 3, "checkpoint_interval": 1}  # fmt: skip
    arguments = supervised_flags(workshop, STEP1, tmp_path, learning_rate=1e30, **flags_of_run)
    result = run_script(STEP1, arguments)
    assert result.code == 2 and result.stderr.count("error:") == 1, result.stderr
    assert "3 optimizer steps in a row were not finite" in result.stderr
    good = tmp_path / "checkpoints/step_00000001"
    assert f"lower --learning_rate; the last good checkpoint is {good}\n" in result.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == [good]
    assert result.stdout.count("is not finite; that optimizer step is skipped") == 3
    arguments = supervised_flags(
        workshop, STEP1, tmp_path, learning_rate=1e-3, allow_changed_flags=True, **flags_of_run
    )
    result = run_script(STEP1, arguments)
    assert result.code == 0 and f"going on from {good}" in result.stdout, result.stderr
    assert json.loads((tmp_path / "evaluation.json").read_text())["perplexity"] < 1000


def test_a_perplexity_beyond_floats_is_no_traceback(workshop: Workshop, tmp_path: Path) -> None:
    arguments = supervised_flags(
        workshop, STEP1, tmp_path, learning_rate=30, num_warmup_steps=0, max_grad_norm=0, num_train_epochs=1
    )
    result = run_script(STEP1, arguments)
    assert "Traceback" not in result.stderr and result.code in (0, 2), result.stderr


def test_an_interrupted_command_says_so_in_a_line_and_ends_by_the_signal() -> None:
    program = "import os, signal; from utils.process.errors import run_main;"
    program += " run_main(lambda: os.kill(os.getpid(), signal.SIGINT))"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, preexec_fn=default_signals
    )
    assert process.returncode == -signal.SIGINT and process.stderr == "error: interrupted\n"
