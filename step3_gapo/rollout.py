"""From prompts to experience: generation, scores, log-probabilities, values, per-objective rewards and advantages."""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch

from step3_gapo import ppo
from step3_gapo.critics import Critic
from step3_gapo.experience import Experience, NamedTensors
from step3_gapo.needs import Needs, estimator_of
from step3_gapo.rlhf_engine import RLHFEngine
from utils.combining.algorithm import Algorithm, ScoreLevel, checked
from utils.data.encoding import Encoded
from utils.engines.parking import resident
from utils.policy.actor import Actor
from utils.policy.forward import PolicyForward
from utils.policy.sampled import Sampled, by_micro_batch, sample_responses
from utils.process.distributed import all_gather_rows, all_reduce_sum
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.scorers import score_responses


@dataclass
class Rollout:
    """One rollout: the experience, its texts, and the seconds its two phases took."""

    experience: Experience
    prompts: list[Encoded]
    responses: list[str]
    truncated: NamedTensors  # see `Scored`; [batch] each, of the score models that may have to truncate
    not_finite: str | None  # what is not finite on some rank
    generation_seconds: float
    scoring_seconds: float


def make_rollout(engine: RLHFEngine, prompts: list[Encoded], algorithm: Algorithm, args: argparse.Namespace) -> Rollout:
    """Let the policy answer `prompts` and compute everything the update needs."""
    start = time.monotonic()
    with engine.actor.gathered():  # once for all
        generate = engine.actor.generate
        sampled = sample_responses(generate, prompts, engine.tokenizer, args.per_device_prompt_batch_size)
    generated = time.monotonic()
    beat("scoring")
    log_probs, hidden = actor_log_probs(engine.actor, sampled, engine.needs, args)
    scored = {scorer.objective.name: score_responses(scorer, sampled, args) for scorer in engine.scorers}
    experience = Experience(
        sampled.input_ids,
        sampled.attention_mask,
        sampled.mask,
        sampled.finished,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs(engine.reference, sampled, args),
        scores={name: part.values for name, part in scored.items()},
        values=values_of_states(engine, sampled, args),
        hidden=hidden,
    )
    add_advantages(experience, [s.objective for s in engine.scorers if s.objective.optimized], algorithm, args)
    seconds = (generated - start, time.monotonic() - generated)
    truncated = {name: part.truncated for name, part in scored.items() if part.truncated is not None}
    return Rollout(experience, prompts, sampled.responses, truncated, experience.not_finite(), *seconds)


@torch.no_grad()
def actor_log_probs(
    actor: Actor, sampled: Sampled, needs: Needs, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the actions, [batch, time], and `Experience.hidden` where an update has use for it.

    Where micro-batches accumulate, their gradients are compared before the first backward pass. For the first
    optimizer step the pass made here serves: the policy is still the same.
    """
    accumulates = (args.gradient_accumulation_steps > 1 or args.micro_batch_tokens) and args.gram_per == "step"
    useful = accumulates and args.gradient_scope == "last_layer" and needs.gram
    kept: list[torch.Tensor] = []

    def run(*micro_batch: Any) -> torch.Tensor:
        output = actor.forward(*micro_batch)
        if useful:
            kept.append(output.hidden)
        return output.log_probs

    log_probs = by_micro_batch(run, sampled, args) * sampled.mask
    return log_probs, by_micro_batch(lambda *_: kept.pop(0), sampled, args) if useful else None


@torch.no_grad()
def ref_log_probs(reference: PolicyForward, sampled: Sampled, args: argparse.Namespace) -> torch.Tensor:
    """Log-probabilities of the actions under the policy that training starts from, [batch, time]."""
    with resident(reference.engine.module):
        return by_micro_batch(lambda *micro_batch: reference(*micro_batch).log_probs, sampled, args) * sampled.mask


@torch.no_grad()
def values_of_states(engine: RLHFEngine, sampled: Sampled, args: argparse.Namespace) -> NamedTensors:
    """Every critic's value of the state before each action: name -> [batch, time]."""
    values: NamedTensors = {}
    for critic in engine.critics:

        def run(ids: torch.Tensor, attention: torch.Tensor, time: int, critic: Critic = critic) -> torch.Tensor:
            return critic.engine(ids, attention)[:, -time - 1 : -1]

        outputs = by_micro_batch(run, sampled, args)  # [batch, time, heads]
        values |= {name: outputs[..., head] * sampled.mask for head, name in enumerate(critic.names)}
    return values


def add_advantages(
    experience: Experience, objectives: list[Objective], algorithm: Algorithm, args: argparse.Namespace
) -> None:
    """Advantages and returns of every loss, in place."""
    scores, estimator = training_scores(experience, objectives, args), estimator_of(args)
    if isinstance(algorithm, ScoreLevel):
        mixed = algorithm.mix_scores(scores, scores.isfinite())
        scores = checked(mixed, scores.shape[:1], algorithm, "mix_scores").unsqueeze(-1)
    for loss, column in zip(algorithm.losses, scores.unbind(dim=-1), strict=True):
        experience.advantages[loss], experience.returns[loss] = estimator.estimate(loss, column, experience, args)
    if args.whiten_advantages:
        whiten_advantages(experience)


def episode_scores(experience: Experience, objectives: list[Objective], args: argparse.Namespace) -> torch.Tensor:
    """Training scores of the responses of all ranks, for methods that follow them; [responses, m] float32."""
    return all_gather_rows(training_scores(experience, objectives, args))


def training_scores(experience: Experience, objectives: list[Objective], args: argparse.Namespace) -> torch.Tensor:
    """What the update sees of the scores of the optimized objectives; [batch, m] float32."""
    scores = [training_score(experience.scores[o.name], o.scale, experience.finished, args) for o in objectives]
    return torch.stack(scores, dim=-1)


def training_score(
    scores: torch.Tensor, scale: float, finished: torch.Tensor, args: argparse.Namespace
) -> torch.Tensor:
    """What the update sees of a score: clipped, less the penalty for a response without EOS, scaled; [batch]."""
    scores = scores.clamp(-args.clip_range_score, args.clip_range_score)
    return scale * (scores - args.missing_eos_penalty * (1.0 - finished))


def whiten_advantages(experience: Experience) -> None:
    """Give every objective's advantages zero mean and unit variance over all ranks' actions, in place.

    In float64 and two passes: Σ A² / n − mean² is nothing but rounding where the mean is far from zero.
    """
    mask = experience.mask.double()
    for name, advantages in experience.advantages.items():
        exact = advantages.double()
        count, total = all_reduce_sum(torch.stack([mask.sum(), (exact * mask).sum()]))
        mean = total / count
        variance = all_reduce_sum(((exact - mean).square() * mask).sum()) / count
        experience.advantages[name] = ppo.whiten(exact, mean, variance, mask).to(advantages.dtype)
