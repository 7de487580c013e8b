"""One optimizer step of the policy and all critics: gradient-level scopes against fixed weights."""

import argparse
from collections.abc import Callable

import torch

from step3_gapo.critics import Critic
from step3_gapo.experience import Experience
from tests.benchmarks.measure import Ratio, Seconds, ratio_of, time_in_turns
from tests.benchmarks.section import Row, Section, by_layout, in_order
from tests.benchmarks.synthetic import (
    Load,
    arguments_of,
    make_actor,
    make_critics,
    make_experience,
    make_update,
)
from tests.updates import critic_step, policy_step
from utils.policy.actor import Actor

BASELINE = "morlhf"
SCOPES = ("last_layer", "full")
FLAGS = {BASELINE: {}} | {scope: {"algorithm": "gapo", "gradient_scope": scope} for scope in SCOPES}


def bar_of(scope: str, objectives: int) -> float:
    """What a whole step may cost, in steps with fixed weights: 1.10 at m = 2 and 1.20 at m = 4 for `last_layer`."""
    return 1 + 0.05 * objectives if scope == "last_layer" else 1 + 0.6 * (objectives - 1)


def actor_steps(
    actor: Actor, experience: list[Experience], args: argparse.Namespace, objectives: int
) -> dict[str, Callable[[], object]]:
    """One update of the policy in every variant, all on the same engine."""
    updates = {
        f"{variant} {objectives}": make_update(actor, args, objectives, **flags) for variant, flags in FLAGS.items()
    }
    return {name: lambda update=update: policy_step(update, experience) for name, update in updates.items()}


def critic_steps(
    critics: list[Critic], experience: list[Experience], args: argparse.Namespace
) -> dict[str, Callable[[], object]]:
    return {
        critic_name(i): lambda critic=critic: critic_step(critic, experience, args) for i, critic in enumerate(critics)
    }


def critic_name(number: int) -> str:
    return f"critic {number}"


def whole_step(seconds: Seconds, variant: str, objectives: int) -> torch.Tensor:
    """[rounds] seconds of the policy's update and, after it, those of m critics."""
    return seconds[variant] + sum(seconds[critic_name(i)] for i in range(objectives))


def time_steps(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> Seconds:
    """Seconds of every variant's update of the policy for every m, and of one update of every critic."""
    args = arguments_of(load, ranks, stage)
    actor, critics = make_actor(load, args), make_critics(load, args, max(objectives))
    experience = make_experience(actor, load, args, max(objectives))
    variants = critic_steps(critics, experience, args)
    for m in objectives:
        variants |= actor_steps(actor, experience, args, m)
    return time_in_turns(variants, rounds)


def compare(seconds: Seconds, objectives: int, bars: bool) -> dict[str, Ratio | float]:
    """The cells of one m."""
    baseline, cells = f"{BASELINE} {objectives}", {}
    for scope in SCOPES:
        steps = [whole_step(seconds, name, objectives) for name in (f"{scope} {objectives}", baseline)]
        cells[f"{scope}: step"] = ratio_of(*steps, bar=bar_of(scope, objectives) if bars else None)
    for scope in SCOPES:
        cells[f"{scope}: policy only"] = ratio_of(seconds[f"{scope} {objectives}"], seconds[baseline])
    return cells | {f"{BASELINE} [s]": round(whole_step(seconds, baseline, objectives).median().item(), 4)}


def step_rows(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> list[Row]:
    seconds = time_steps(load, stage, ranks, objectives, rounds)
    return [{"ZeRO": stage, "ranks": ranks, "m": m} | compare(seconds, m, bars=True) for m in objectives]


SECTION = Section(
    title="Time of one optimizer step, over that of morlhf",
    note="The policy's update and those of m critics of its size, on the same experience, without the rollout. One"
    " after the other and timed one by one: the policy's in every variant, the critics' once a round for all variants.",
    jobs=by_layout(step_rows, weight=25),
    rows=in_order,
)
