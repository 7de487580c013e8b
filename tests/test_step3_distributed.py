"""Step 3 on several ranks: every ZeRO stage takes the same steps, and they are those of the whole batch.

The DeepSpeed launcher starts the processes where a test says so; elsewhere they are forked, which is cheaper.
"""

import argparse
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from step3_gapo.experience import Experience
from step3_gapo.main import count_rollouts, optimizer_batches, prompt_batches
from step3_gapo.rollout import whiten_advantages
from tests.cases import EXHAUSTIVE, beyond, cases
from tests.helpers import (
    STEP3,
    Workshop,
    distance,
    launch,
    read_metrics,
    read_weights,
    run_function,
    run_script,
    untimed,
)
from tests.test_step3_engine import check_against_plain_torch, engine_flags
from utils.process.distributed import init_distributed, rank, shutdown_distributed, world_size
from utils.process.errors import UserError

pytestmark = pytest.mark.slow

EVERYTHING = {
    "gradient_checkpointing": True, "ppo_epochs": 2, "gradient_accumulation_steps": 2,
    "generation_batches": 2, "per_device_prompt_batch_size": 4, "per_device_train_batch_size": 2,
    "critic": "shared", "whiten_advantages": True, "max_steps": 1, "kl_coeff": 0.2,
}  # fmt: skip


def launched(workshop: Workshop, name: str, ranks: int, **changes: object) -> Path:
    """A run by the real launcher; what one rank should say and write is said and written once."""
    result = launch(STEP3, workshop.step3_flags(name, **changes), ranks)
    assert result.code == 0, result.stderr
    output, steps = workshop.folder / name, changes.get("max_steps", 2)
    for line in (f"{name} {steps}/{steps} · ", f"policy saved in {output}", "read 64, kept 64"):
        assert result.stdout.count(line) == 1
    assert "Traceback" not in result.stderr
    return output


def check_same_run(first: Path, second: Path) -> None:
    assert distance(first, second) <= 1e-5
    for step, expected in zip(untimed(read_metrics(second)), untimed(read_metrics(first)), strict=True):
        assert step == pytest.approx(expected, rel=1e-4, abs=2e-6)


def check_finished(output: Path, steps: int = 2) -> None:
    metrics = read_metrics(output)
    assert [step["step"] for step in metrics] == list(range(1, steps + 1))
    assert all(math.isfinite(value) for step in metrics for value in step.values())
    assert len(list((output / "tensorboard").iterdir())) == 1
    assert all(weight.isfinite().all() for weight in read_weights(output).values())


# --- the launcher


@pytest.mark.parametrize("ranks", cases([1, 2, 3], always=[2]))
def test_all_zero_stages_end_in_the_same_weights_and_metrics(workshop: Workshop, ranks: int) -> None:
    reference = workshop.step3(f"zero0_{ranks}", ranks=ranks, zero_stage=0)
    check_finished(reference)
    assert distance(reference, workshop.base) > 1e-3
    if ranks == 2:
        outputs = [launched(workshop, "launched", ranks=2, zero_stage=2)]
        layouts = [(1, False), (3, True)]
    else:
        outputs, layouts = [], [(1, False), (2, False), (2, True), (3, False), (3, True)]
    for stage, offload in layouts:
        name = f"zero{stage}_{offload}_{ranks}"
        outputs.append(workshop.step3(name, ranks=ranks, zero_stage=stage, offload=offload))
    for output in outputs:
        check_finished(output)
        check_same_run(reference, output)


def test_everything_at_once_on_three_ranks(workshop: Workshop) -> None:
    """Checkpointing, accumulation, PPO epochs, a shared critic: ZeRO-3 with uneven partitions, and ZeRO-0."""
    reference = workshop.step3("all_zero0", ranks=3, zero_stage=0, **EVERYTHING)
    output = workshop.step3("all_zero3", ranks=3, zero_stage=3, **EVERYTHING)
    check_finished(output, steps=1)
    check_same_run(reference, output)
    # Two epochs of two optimizer steps: the first is on-policy, the last are not.
    (metrics,) = read_metrics(output)
    assert metrics["first_minibatch/ratio_error"] <= 1e-5 < metrics["ratio_error"]


def test_ranks_refuse_with_one_voice(workshop: Workshop) -> None:
    """What the launcher makes of it: `test_rank_failures.py`."""
    result = run_script(STEP3, workshop.step3_flags("refused", monitor="truth"), 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: --monitor truth: no such objective (there are helpfulness, harmlessness)"]
    assert result.code == 2


# --- the same steps


ACCUMULATED = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(("ranks", "changes"), [
    beyond((2, {"zero_stage": 0, **ACCUMULATED})), beyond((2, {"zero_stage": 2})),
    (2, {"zero_stage": 3, **ACCUMULATED}), beyond((3, {"zero_stage": 3})),
], ids=str)  # fmt: skip
def test_steps_are_those_of_plain_torch_on_all_ranks_responses(
    workshop: Workshop, tmp_path: Path, ranks: int, changes: dict
) -> None:
    arguments = engine_flags(workshop, tmp_path, max_grad_norm=1000, **changes)
    result = run_function(check_against_plain_torch, arguments, tmp_path, ranks=ranks)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize(("stage", "ranks"), cases(
    itertools.product((0, 1, 2, 3), (1, 2, 3)), always=[(1, 1), (3, 2)]
))  # fmt: skip
def test_bf16(workshop: Workshop, stage: int, ranks: int) -> None:
    output = workshop.step3("bf16", ranks=ranks, zero_stage=stage, dtype="bf16", gradient_checkpointing=True)
    check_finished(output)
    weights, start = read_weights(output), read_weights(workshop.base)
    moved = 0
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        move = (weight.float() - start[name]).abs().max().item()
        # Four steps of at most the learning rate, and half a unit in the last of bf16's 8 bits.
        assert move <= 4e-3 + 2**-8 * start[name].abs().max().item()
        moved += move > 0
    assert moved == len(weights)
    for step in read_metrics(output):
        assert step["first_minibatch/ratio_error"] <= 0.05


@EXHAUSTIVE
def test_bf16_scores_as_fp32_does(workshop: Workshop) -> None:
    """At next to no temperature both sample the same responses, and the scores differ by rounding only."""
    changes = {"ranks": 2, "zero_stage": 3, "max_steps": 1, "temperature": 0.01, "max_new_tokens": 4}
    (exact,) = read_metrics(workshop.step3("exact", **changes))
    (rounded,) = read_metrics(workshop.step3("rounded", dtype="bf16", **changes))
    assert rounded["response_length"] == exact["response_length"]
    for name in ("helpfulness", "harmlessness"):
        assert rounded[f"reward/{name}"] == pytest.approx(exact[f"reward/{name}"], abs=0.05)


# --- who gets what


def batch_sizes(**changes: int) -> argparse.Namespace:
    """Three prompts a rank and generation batch, two of these a rollout; two epochs, two PPO epochs."""
    return argparse.Namespace(**{
        "per_device_prompt_batch_size": 3, "generation_batches": 2, "num_train_epochs": 2, "max_steps": None,
        "seed": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "ppo_epochs": 2,
        "gram_fraction": None, "responses_per_prompt": None, "gram_per": "step", "policy_loss": None, "tasks": None,
    } | changes)  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_out_every_prompt_once_an_epoch(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    args, prompts = batch_sizes(), list(range(40))
    per_epoch = 40 // (6 * ranks)
    assert count_rollouts(args, 40) == 2 * per_epoch
    assert count_rollouts(batch_sizes(max_steps=2), 40) == 2
    with pytest.raises(UserError, match="--data"):
        count_rollouts(args, 6 * ranks - 1)
    dealt = []  # rank, rollout, prompt
    for number in range(ranks):
        dealt.append([batch[number::ranks] for batch in prompt_batches(prompts, args)])
    assert [[len(batch) for batch in batches] for batches in dealt] == [[6] * 2 * per_epoch] * ranks
    first, second = (
        list(itertools.chain(*(batch for batches in dealt for batch in batches[start : start + per_epoch])))
        for start in (0, per_epoch)
    )
    assert len(set(first)) == len(set(second)) == 6 * ranks * per_epoch
    assert first != second


@pytest.mark.parametrize(("size", "parts"), [(2, 1), (2, 3), (1, 6), (6, 1)])
def test_every_ppo_epoch_takes_every_row_once(size: int, parts: int) -> None:
    args = batch_sizes(per_device_train_batch_size=size, gradient_accumulation_steps=parts, micro_batch_tokens=0)
    mask, numbers = torch.ones(6, 1), torch.arange(6).unsqueeze(-1)  # of the rows, in place of ids
    experience = Experience(numbers, torch.ones(6, 2), mask, mask[:, 0], mask, scores={}, judged={}, log_probs=mask)
    steps = [[batch.input_ids.flatten().tolist() for batch in step.all] for step in optimizer_batches(experience, args)]
    assert [[len(batch) for batch in step] for step in steps] == [[size] * parts] * (2 * 6 // (size * parts))
    rows = [row for step in steps for batch in step for row in batch]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))


def check_whitening() -> None:
    """On every rank: the moments are those of all ranks' actions."""
    init_distributed()
    advantages = torch.tensor([[[1.0, 3.0, 50.0]], [[5.0, 7.0, 90.0]]])[rank()]
    experience = SimpleNamespace(
        mask=torch.tensor([[1.0, 1.0, 0.0]]), advantages={"a": advantages}, counted={"a": torch.ones(1)}
    )
    whiten_advantages(experience)
    expected = torch.tensor([[[-3.0, -1.0, 0.0]], [[1.0, 3.0, 0.0]]])[rank()] / math.sqrt(5)
    torch.testing.assert_close(experience.advantages["a"], expected)
    shutdown_distributed()


def test_whitening_is_over_all_ranks() -> None:
    result = run_function(check_whitening, ranks=2)
    assert result.code == 0, result.stderr


def check_whitening_far_from_zero() -> None:
    """On every rank: against float64, of advantages whose mean is a thousand deviations from zero."""
    init_distributed()
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(8, 50, generator=generator)
    everything = {"a": 1e3 + near, "b": 1e-3 * near - 1}  # float32
    mask = (torch.arange(50) < torch.randint(1, 51, (8, 1), generator=generator)).float()
    rows = slice(rank() * 8 // world_size(), (rank() + 1) * 8 // world_size())
    experience = SimpleNamespace(
        mask=mask[rows],
        advantages={name: a[rows] for name, a in everything.items()},
        counted={name: mask[rows].amax(dim=-1) for name in everything},
    )
    whiten_advantages(experience)
    for name, advantages in everything.items():
        actions = advantages.double()[mask > 0]
        variance = actions.var(correction=0) + 1e-8
        expected = (advantages.double() - actions.mean()) / variance.sqrt() * mask
        whitened = experience.advantages[name]
        assert whitened.dtype == torch.float32 and (whitened[mask[rows] == 0] == 0).all()
        torch.testing.assert_close(whitened.double(), expected[rows], rtol=1e-6, atol=1e-6)
    shutdown_distributed()


@pytest.mark.parametrize("ranks", [1, 2])
def test_whitening_far_from_zero_is_exact(ranks: int) -> None:
    result = run_function(check_whitening_far_from_zero, ranks=ranks)
    assert result.code == 0, result.stderr
