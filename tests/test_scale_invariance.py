"""What the scale of one objective does to a step: nothing under GAPO (p = 1) and P-GAPO, much under the others.

The score, the KL penalty and the values of one objective are multiplied by a constant, as though its model had been
trained on another scale; one optimizer step follows, of a policy that has left its reference.
"""

import argparse
from pathlib import Path

import pytest
import torch

from step3_gapo import ppo
from step3_gapo.experience import Experience
from step3_gapo.rollout import make_rollout, training_score
from tests.cases import beyond
from tests.helpers import Workshop, distance, run_function
from tests.test_step3_engine import build
from tests.updates import policy_step
from utils.process.distributed import shutdown_distributed

pytestmark = pytest.mark.slow

SCALED = "harmlessness"
SCALES = (1e-3, 1e4)


def step_with_scale(arguments: list[str], scale: float, output: Path) -> None:
    """Export the policy after one step in which the reward of one objective is `scale` times what it was."""
    args, engine, actor_update, prompts = build(arguments)
    torch.manual_seed(3)
    for parameter in engine.actor.engine.module.parameters():  # away from the reference, so that there is a KL
        parameter.data += 0.02 * torch.randn_like(parameter)
    experience = make_rollout(
        engine, prompts[: args.per_device_prompt_batch_size], actor_update.algorithm, args
    ).experience
    assert (experience.log_probs - experience.ref_log_probs).abs().max() > 1e-3
    scale_reward(experience, scale, args)
    assert policy_step(actor_update, [experience]) is not None
    engine.save_policy(output)
    shutdown_distributed()


def scale_reward(experience: Experience, scale: float, args: argparse.Namespace) -> None:
    """Advantages of the scaled objective anew: score, KL coefficient and values times `scale`."""
    score = training_score(experience.scores[SCALED], scale, experience.finished, args)
    log_probs = (experience.log_probs, experience.ref_log_probs)
    rewards = ppo.kl_penalized_rewards(score, *log_probs, experience.mask, scale * args.kl_coeff)
    values = scale * experience.values[SCALED]
    before = experience.advantages[SCALED]
    experience.advantages[SCALED], _ = ppo.generalized_advantage_estimate(
        rewards, values, experience.mask, args.gamma, args.gae_lambda
    )
    torch.testing.assert_close(experience.advantages[SCALED], scale * before, rtol=1e-4, atol=1e-5 * scale)


def policy_after(workshop: Workshop, scale: float, output: str = "", **changes: object) -> Path:
    """The policy after the step; Adam's large eps keeps it from hiding the length of a gradient."""
    output = workshop.folder / (output or f"scale_{scale:g}")
    output.mkdir(exist_ok=True)
    settings = {"per_device_train_batch_size": 8, "kl_coeff": 0.3, "adam_eps": 1e-3, "actor_learning_rate": 1e-2}
    arguments = workshop.step3_flags(output.name, **settings | changes)
    result = run_function(step_with_scale, arguments, scale, output)
    assert result.code == 0, result.stderr
    return output


@pytest.mark.parametrize("changes", [
    {"algorithm": "gapo"}, beyond({"algorithm": "p_gapo", "preference": ("helpfulness=0.3", "harmlessness=0.7")}),
    beyond({"algorithm": "gapo", "gradient_scope": "full"}),
    {"algorithm": "p_gapo", "gradient_scope": "full", "preference": ("helpfulness=0.8", "harmlessness=0.2")},
], ids=str)  # fmt: skip
def test_the_scale_of_a_reward_does_not_move_gapo_and_p_gapo(workshop: Workshop, changes: dict) -> None:
    unscaled = policy_after(workshop, 1.0, **changes)
    assert (
        distance(unscaled, policy_after(workshop, 1.0, output="unmoved", actor_learning_rate=1e-30, **changes)) > 1e-3
    )
    for scale in SCALES:
        assert distance(unscaled, policy_after(workshop, scale, **changes)) <= 1e-5


@pytest.mark.parametrize("changes", [
    {"algorithm": "morlhf"}, beyond({"algorithm": "mgda"}), {"algorithm": "gapo", "rescale_power": 2},
    beyond({"algorithm": "mgda", "gradient_scope": "full"}),
], ids=str)  # fmt: skip
def test_the_scale_of_a_reward_moves_the_others(workshop: Workshop, changes: dict) -> None:
    unscaled = policy_after(workshop, 1.0, **changes)
    for scale in SCALES:
        assert distance(unscaled, policy_after(workshop, scale, **changes)) > 1e-3
