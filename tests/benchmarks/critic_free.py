"""One optimizer step without critics, where what the gradients of the objectives cost is not hidden by theirs."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from step3_gapo.experience import Experience
from step3_gapo.main import optimizer_batches
from step3_gapo.update import StepBatches
from tests.benchmarks.measure import Ratio, Seconds, ratio_of, time_in_turns
from tests.benchmarks.section import Row, Section, by_layout, in_order
from tests.benchmarks.step import BASELINE
from tests.benchmarks.synthetic import Load, arguments_of, make_actor, make_experience, make_update
from tests.updates import policy_step
from utils.policy.actor import Actor

WITHOUT_CRITICS = {"advantage": "group", "responses_per_prompt": 2}  # of random advantages no more is seen
FRACTION, EVERY = 0.25, 4
SHARE, KEPT = f"full, --gram_fraction {FRACTION}", f"full, --gram_every {EVERY}"
ALWAYS_KEPT = "full, no gradients compared"
FULL = {"algorithm": "gapo", "gradient_scope": "full"}
FLAGS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "last_layer": FULL | {"gradient_scope": "last_layer"},
    "full": FULL,
    SHARE: FULL | {"gram_fraction": FRACTION},
    ALWAYS_KEPT: FULL | {"gram_every": 10**9},  # but in the first step, which warms up
}


def bar_of(variant: str, objectives: int) -> float | None:
    """What an update may cost, in updates with fixed weights: 1.35 at m = 2 and 1.75 at m = 4 for a share."""
    return 0.95 + 0.2 * objectives if variant == SHARE else None


def make_responses(actor: Actor, load: Load, args: argparse.Namespace, objectives: int) -> Experience:
    """This rank's responses of one optimizer step, each with one advantage for all of its actions."""
    (experience,) = make_experience(actor, load, args, objectives)
    for name, advantage in experience.advantages.items():
        experience.advantages[name] = advantage[:, :1] * experience.mask
    experience.ref_log_probs = experience.log_probs  # as at the start of a run
    return experience


def batches_of(experience: Experience, args: argparse.Namespace) -> StepBatches:
    """The responses as an update under these flags gets them."""
    return next(optimizer_batches(experience, args))


def policy_updates(
    actor: Actor, experience: Experience, args: argparse.Namespace, objectives: int
) -> dict[str, Callable[[], object]]:
    """One update of the policy in every variant, all on the same engine."""
    steps = {}
    for variant, flags in FLAGS.items():
        update = make_update(actor, args, objectives, **flags)
        steps[f"{variant} {objectives}"] = partial(policy_step, update, batches_of(experience, update.args))
    return steps


def time_updates(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> Seconds:
    """Seconds of one update of the policy, for every variant and every m."""
    args = arguments_of(load, ranks, stage, **WITHOUT_CRITICS)
    actor = make_actor(load, args)
    experience, variants = make_responses(actor, load, args, max(objectives)), {}
    for m in objectives:
        variants |= policy_updates(actor, experience, args, m)
    return time_in_turns(variants, rounds)


def compare(seconds: Seconds, objectives: int) -> dict[str, Ratio | float]:
    """The cells of one m."""
    updates = {variant: seconds[f"{variant} {objectives}"] for variant in FLAGS}
    baseline, kept = updates.pop(BASELINE), updates.pop(ALWAYS_KEPT)
    updates[KEPT] = (updates["full"] + (EVERY - 1) * kept) / EVERY
    cells: dict[str, Ratio | float] = {
        variant: ratio_of(update, baseline, bar=bar_of(variant, objectives)) for variant, update in updates.items()
    }
    return cells | {f"{BASELINE} [s]": round(baseline.median().item(), 4)}


def critic_free_rows(load: Load, stage: int, ranks: int, objectives: tuple[int, ...], rounds: int) -> list[Row]:
    seconds = time_updates(load, stage, ranks, objectives, rounds)
    return [{"ZeRO": stage, "ranks": ranks, "m": m} | compare(seconds, m) for m in objectives]


SECTION = Section(
    title="Time of one optimizer step without critics, over that of morlhf without critics",
    note="The policy's update alone, which is all there is: one advantage a response, the KL penalty in the loss."
    f" --gram_fraction {FRACTION}: the gradients of that share of the step's responses are compared; --gram_every"
    f" {EVERY}: those of one step in {EVERY}; the mean of {EVERY} steps.",
    jobs=by_layout(critic_free_rows, weight=30),
    rows=in_order,
)
