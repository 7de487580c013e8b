"""From prompts to experience: generation, scores, log-probabilities, values, per-objective rewards and advantages."""

import argparse
import dataclasses
import time
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from step3_gapo import ppo
from step3_gapo.rlhf_engine import Actor, RLHFEngine, ScoreModel, response_logits
from utils.data.batching import left_pad, right_pad
from utils.data.encoding import Encoded, encode_prompt, encode_response
from utils.distributed import all_reduce_sum, device

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

    @property
    def actions(self) -> torch.Tensor:
        """[batch, time] int64 response tokens."""
        return self.input_ids[:, -self.mask.shape[1] :]

    def select(self, rows: torch.Tensor) -> "Experience":
        """The rows with these indices ([k] int64)."""

        def pick(value: torch.Tensor | NamedTensors) -> torch.Tensor | NamedTensors:
            return {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]

        return Experience(**{f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def is_finite(self) -> bool:
        """Whether every number of it is finite, on all ranks."""
        tensors = [self.log_probs, self.ref_log_probs, *self.scores.values(), *self.values.values()]
        bad = torch.stack([~t.isfinite().all() for t in tensors]).sum().float()
        return all_reduce_sum(bad).item() == 0


@dataclass
class Rollout:
    """One rollout: the experience, its texts, and the seconds its two phases took."""

    experience: Experience
    prompts: list[Encoded]
    responses: list[str]
    finite: bool  # on all ranks
    generation_seconds: float
    scoring_seconds: float


def make_rollout(engine: RLHFEngine, prompts: list[Encoded], args: argparse.Namespace) -> Rollout:
    """Let the policy answer `prompts` and compute everything the update needs."""
    start = time.monotonic()
    input_ids, attention_mask, mask = generate_responses(engine.actor, engine.tokenizer, prompts, args)
    generated = time.monotonic()
    responses = decode_responses(engine.tokenizer, input_ids, mask)
    finished = ((input_ids[:, -mask.shape[1] :] == engine.tokenizer.eos_token_id) & (mask > 0)).any(dim=-1)
    scores = {
        model.objective.name: score_responses(
            model, prompts, responses, finished, input_ids, attention_mask, mask, args
        )
        for model in engine.score_models
    }
    experience = Experience(
        input_ids,
        attention_mask,
        mask,
        finished.float(),
        log_probs=log_probs_in_chunks(engine.actor.engine, input_ids, attention_mask, mask, args),
        ref_log_probs=log_probs_in_chunks(engine.reference, input_ids, attention_mask, mask, args),
        scores=scores,
        values=values_of(engine, input_ids, attention_mask, mask, args),
    )
    objectives = [model.objective for model in engine.score_models if model.objective.optimized]
    for objective in objectives:
        score = training_score(scores[objective.name], objective.scale, experience.finished, args)
        rewards = ppo.kl_penalized_rewards(score, experience.log_probs, experience.ref_log_probs, mask, args.kl_coeff)
        experience.advantages[objective.name], experience.returns[objective.name] = ppo.generalized_advantage_estimate(
            rewards, experience.values[objective.name], mask, args.gamma, args.gae_lambda
        )
    if args.whiten_advantages:
        whiten_advantages(experience)
    finite = experience.is_finite()
    return Rollout(experience, prompts, responses, finite, generated - start, time.monotonic() - generated)


@torch.no_grad()
def generate_responses(
    actor: Actor, tokenizer: PreTrainedTokenizerBase, prompts: list[Encoded], args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample one response a prompt, `per_device_prompt_batch_size` prompts at a time.

    Returns:
        input_ids, attention_mask: [batch, prompt + response] int64. mask: [batch, response] float32.
    """
    prompt_ids, prompt_mask = (
        t.to(device()) for t in left_pad([prompt.prompt for prompt in prompts], tokenizer.pad_token_id)
    )
    size = args.per_device_prompt_batch_size
    with actor.gathered():
        parts = [
            actor.generate(prompt_ids[i : i + size], prompt_mask[i : i + size])[:, prompt_ids.shape[1] :]
            for i in range(0, len(prompts), size)
        ]
    width = max(part.shape[1] for part in parts)
    pad = tokenizer.pad_token_id
    response_ids = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=pad) for p in parts])
    mask = torch.cat(
        [torch.nn.functional.pad(ppo.response_mask(p, tokenizer.eos_token_id), (0, width - p.shape[1])) for p in parts]
    )
    response_ids = response_ids.masked_fill(mask == 0, pad)
    return torch.cat([prompt_ids, response_ids], 1), torch.cat([prompt_mask, mask.long()], 1), mask


def decode_responses(tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """The texts of the responses, without special tokens."""
    lengths = mask.sum(dim=-1).long().tolist()
    rows = input_ids[:, -mask.shape[1] :].tolist()
    return [tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in zip(rows, lengths, strict=True)]


@torch.no_grad()
def log_probs_in_chunks(engine, input_ids, attention_mask, mask, args: argparse.Namespace) -> torch.Tensor:
    """Log-probabilities of the actions, [batch, time]; in chunks of the training batch to bound the memory."""
    time_steps, chunk = mask.shape[1], args.per_device_train_batch_size
    parts = []
    for ids, attention in zip(input_ids.split(chunk), attention_mask.split(chunk), strict=True):
        logits = response_logits(engine, ids, attention, time_steps)
        parts.append(ppo.log_probs_of(logits, ids[:, -time_steps:], args.temperature))
    return torch.cat(parts) * mask


@torch.no_grad()
def values_of(engine: RLHFEngine, input_ids, attention_mask, mask, args: argparse.Namespace) -> NamedTensors:
    """Every critic's value of the state before each action: name -> [batch, time]."""
    time_steps, chunk = mask.shape[1], args.per_device_train_batch_size
    values = {}
    for critic in engine.critics:
        parts = [
            critic.engine(ids, attention)[:, -time_steps - 1 : -1]
            for ids, attention in zip(input_ids.split(chunk), attention_mask.split(chunk), strict=True)
        ]
        for head, name in enumerate(critic.names):
            values[name] = torch.cat(parts)[..., head] * mask
    return values


@torch.no_grad()
def score_responses(
    model: ScoreModel,
    prompts: list[Encoded],
    responses: list[str],
    finished,
    input_ids,
    attention_mask,
    mask,
    args: argparse.Namespace,
) -> torch.Tensor:
    """Objective value of every response, from the score at its last token; [batch] float32.

    A model with the policy's tokenizer reads the policy's tokens; any other reads the texts through its own.
    """
    if model.tokenizer is None:
        last = input_ids.shape[1] - mask.shape[1] + mask.sum(dim=-1).long() - 1  # [batch] column of the last action
    else:
        rows = foreign_ids(model.tokenizer, prompts, responses, finished.tolist())
        input_ids, attention_mask = (t.to(device()) for t in right_pad(rows, model.tokenizer.pad_token_id))
        last = attention_mask.sum(dim=-1) - 1
    chunk = args.per_device_train_batch_size
    parts = [
        model.engine(ids, attention).squeeze(-1).gather(-1, end.unsqueeze(-1)).squeeze(-1)
        for ids, attention, end in zip(
            input_ids.split(chunk), attention_mask.split(chunk), last.split(chunk), strict=True
        )
    ]
    return model.value(torch.cat(parts))


def foreign_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Encoded], responses: list[str], finished: list[bool]
) -> list[list[int]]:
    """Dialogues in another model's ids and chat template; a response that never ended gets no EOS here either."""
    rows = []
    for prompt, response, ended in zip(prompts, responses, finished, strict=True):
        messages = prompt.record.messages
        reply = encode_response(tokenizer, messages, response)
        rows.append(encode_prompt(tokenizer, messages) + (reply if ended else reply[:-1]))
    return rows


def training_score(
    scores: torch.Tensor, scale: float, finished: torch.Tensor, args: argparse.Namespace
) -> torch.Tensor:
    """What the update sees of a score: clipped, scaled, less the penalty for a response without EOS; [batch]."""
    scores = scale * scores.clamp(-args.clip_range_score, args.clip_range_score)
    return scores - args.missing_eos_penalty * (1.0 - finished)


def whiten_advantages(experience: Experience) -> None:
    """Give every objective's advantages zero mean and unit variance over all ranks' actions, in place."""
    mask = experience.mask
    for name, advantages in experience.advantages.items():
        moments = torch.stack([mask.sum(), (advantages * mask).sum(), (advantages.square() * mask).sum()])
        count, total, squares = all_reduce_sum(moments)
        mean = total / count
        experience.advantages[name] = ppo.whiten(advantages, mean, squares / count - mean.square(), mask)
