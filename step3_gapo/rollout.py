"""From prompts to experience: generation, scores, log-probabilities, values, per-objective rewards and advantages."""

import argparse
import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

from step3_gapo import ppo
from step3_gapo.algorithms import compares_gradients
from step3_gapo.critics import Critic
from step3_gapo.rlhf_engine import RLHFEngine
from utils.data.batching import left_pad
from utils.data.encoding import Encoded, end_ids, response_text
from utils.engines.parking import resident
from utils.policy.actor import Actor
from utils.policy.forward import PolicyForward
from utils.policy.log_probs import finished, response_mask
from utils.policy.sampled import Sampled, by_micro_batch, columns_in_use, micro_batch_rows
from utils.process.distributed import all_gather_rows, all_reduce_sum, device
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.scorers import score_responses

NamedTensors = dict[str, torch.Tensor]


@dataclass
class Experience:
    """What the policy did with a batch of prompts and what it was worth, objective by objective.

    Time runs over the response. All tensors are on this rank's device.

    Attributes:
        input_ids, attention_mask: [batch, prompt + response] int64, prompts left-padded, responses right-padded.
        mask: [batch, time] float32, 1 on actions (the response up to and including EOS).
        finished: [batch] float32, 1 where the response ended by itself, with EOS.
        log_probs, ref_log_probs: [batch, time] float32 of the actions, at the sampling temperature.
        scores: name -> [batch] float32 objective values in original units, for every scored objective.
        values, advantages, returns: name -> [batch, time] float32, for every optimized objective.
        hidden: [batch, time, features], the input of the output head when the log-probabilities were computed, where
            an update has use for it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor
    log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    scores: NamedTensors
    values: NamedTensors
    advantages: NamedTensors = field(default_factory=dict)
    returns: NamedTensors = field(default_factory=dict)
    hidden: torch.Tensor | None = None

    @property
    def actions(self) -> torch.Tensor:
        """[batch, time] int64 response tokens."""
        return self.input_ids[:, -self.mask.shape[1] :]

    def select(self, rows: torch.Tensor) -> "Experience":
        """The rows with these indices ([k] int64)."""

        def pick(value: torch.Tensor | NamedTensors | None) -> torch.Tensor | NamedTensors | None:
            if isinstance(value, dict):
                return {name: tensor[rows] for name, tensor in value.items()}
            return None if value is None else value[rows]

        return Experience(**{f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def micro_batches(self, rows: torch.Tensor, args: argparse.Namespace) -> list["Experience"]:
        """The micro-batches of an optimizer step on these rows ([k] int64)."""
        step = self.select(rows)
        parts = [step.select(part) for part in micro_batch_rows(step.attention_mask, step.mask, args)]
        return [part.trimmed() for part in parts] if args.micro_batch_tokens else parts

    def trimmed(self) -> "Experience":
        """Without the columns that are padding in every row."""
        columns, time = columns_in_use(self.attention_mask, self.mask)
        over_time = ("mask", "log_probs", "ref_log_probs", "values", "advantages", "returns", "hidden")

        def trim(value: torch.Tensor | NamedTensors | None) -> torch.Tensor | NamedTensors | None:
            if isinstance(value, dict):
                return {name: tensor[:, :time] for name, tensor in value.items()}
            return None if value is None else value[:, :time]

        return dataclasses.replace(
            self,
            input_ids=self.input_ids[:, columns],
            attention_mask=self.attention_mask[:, columns],
            **{name: trim(getattr(self, name)) for name in over_time},
        )

    def not_finite(self) -> str | None:
        """What of it is not finite on some rank, the first of these; None where all is."""
        tensors = {"a log-probability": self.log_probs, "a log-probability of the reference": self.ref_log_probs}
        tensors |= {f"a score of {name}": scores for name, scores in self.scores.items()}
        tensors |= {f"a value of {name}": values for name, values in self.values.items()}
        tensors |= {f"an advantage of {name}": advantages for name, advantages in self.advantages.items()}
        tensors |= {f"a return of {name}": returns for name, returns in self.returns.items()}
        bad = all_reduce_sum(torch.stack([~tensor.isfinite().all() for tensor in tensors.values()]).float())
        return next((name for name, count in zip(tensors, bad.tolist(), strict=True) if count), None)


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


def make_rollout(engine: RLHFEngine, prompts: list[Encoded], args: argparse.Namespace) -> Rollout:
    """Let the policy answer `prompts` and compute everything the update needs."""
    start = time.monotonic()
    sampled = sample_responses(engine, prompts, args)
    generated = time.monotonic()
    beat("scoring")
    log_probs, hidden = actor_log_probs(engine.actor, sampled, args)
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
    add_advantages(experience, [s.objective for s in engine.scorers if s.objective.optimized], args)
    seconds = (generated - start, time.monotonic() - generated)
    truncated = {name: part.truncated for name, part in scored.items() if part.truncated is not None}
    return Rollout(experience, prompts, sampled.responses, truncated, experience.not_finite(), *seconds)


@torch.no_grad()
def sample_responses(engine: RLHFEngine, prompts: list[Encoded], args: argparse.Namespace) -> Sampled:
    """One response a prompt, `--per_device_prompt_batch_size` prompts at a time, parameters gathered once for all."""
    pad_id, ends = engine.tokenizer.pad_token_id, end_ids(engine.tokenizer)
    ids, attention = (t.to(device()) for t in left_pad([prompt.prompt for prompt in prompts], pad_id))
    size = args.per_device_prompt_batch_size
    with engine.actor.gathered():
        sequences = []
        for batch in zip(ids.split(size), attention.split(size), strict=True):
            beat("generating")
            sequences.append(engine.actor.generate(*batch))
    responses = [sequence[:, ids.shape[1] :] for sequence in sequences]  # each [size, its longest response]
    width = max(response.shape[1] for response in responses)
    masks = [response_mask(response, ends) for response in responses]
    mask = torch.cat([pad(mask, (0, width - mask.shape[1])) for mask in masks])
    response_ids = torch.cat([pad(r, (0, width - r.shape[1]), value=pad_id) for r in responses])
    response_ids = response_ids.masked_fill(mask == 0, pad_id)
    lengths = mask.sum(dim=-1).long().tolist()
    texts = [
        response_text(engine.tokenizer, row[:length])
        for row, length in zip(response_ids.tolist(), lengths, strict=True)
    ]
    return Sampled(
        prompts,
        texts,
        input_ids=torch.cat([ids, response_ids], dim=1),
        attention_mask=torch.cat([attention, mask.long()], dim=1),
        mask=mask,
        finished=finished(response_ids, mask, ends),
    )


@torch.no_grad()
def actor_log_probs(
    actor: Actor, sampled: Sampled, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the actions, [batch, time], and `Experience.hidden` where an update has use for it.

    Where micro-batches accumulate, their gradients are compared before the first backward pass. For the first
    optimizer step the pass made here serves: the policy is still the same.
    """
    accumulates = (args.gradient_accumulation_steps > 1 or args.micro_batch_tokens) and args.gram_per == "step"
    useful = accumulates and args.gradient_scope == "last_layer" and compares_gradients(args)
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


def add_advantages(experience: Experience, objectives: list[Objective], args: argparse.Namespace) -> None:
    """Rewards, advantages and returns of every optimized objective, in place."""
    mask = experience.mask
    for objective in objectives:
        name = objective.name
        score = training_score(experience.scores[name], objective.scale, experience.finished, args)
        rewards = ppo.kl_penalized_rewards(score, experience.log_probs, experience.ref_log_probs, mask, args.kl_coeff)
        experience.advantages[name], experience.returns[name] = ppo.generalized_advantage_estimate(
            rewards, experience.values[name], mask, args.gamma, args.gae_lambda
        )
    if args.whiten_advantages:
        whiten_advantages(experience)


def episode_scores(experience: Experience, objectives: list[Objective], args: argparse.Namespace) -> torch.Tensor:
    """Training scores of the responses of all ranks, for algorithms that follow them; [responses, m] float32."""
    scores = [training_score(experience.scores[o.name], o.scale, experience.finished, args) for o in objectives]
    return all_gather_rows(torch.stack(scores, dim=-1))


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
