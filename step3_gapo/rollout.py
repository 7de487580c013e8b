"""From prompts to experience: generation, scores, log-probabilities, values, per-objective rewards and advantages."""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from step3_gapo import ppo
from step3_gapo.critics import Critic, values_before_actions
from step3_gapo.experience import Experience, Graphs, NamedTensors
from step3_gapo.needs import Needs, estimator_of, kl_in, update_tells_log_probs
from step3_gapo.rlhf_engine import RLHFEngine
from utils.combining.algorithm import Algorithm, ScoreLevel, checked
from utils.data.encoding import Encoded
from utils.engines.parking import resident
from utils.memory.plan import keeps_head_inputs
from utils.policy.actor import Actor
from utils.policy.forward import PolicyForward
from utils.policy.sampled import Sampled, by_micro_batch, sample_responses
from utils.process.distributed import all_gather_rows, all_reduce_sum
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.scorers import score_responses
from utils.scoring.verdicts import Replies, Verdicts, all_verdicts


@dataclass
class Rollout:
    """One rollout: the experience, its texts, and the seconds its two phases took."""

    experience: Experience
    trained: Experience  # the same, or what is chosen of it
    prompts: list[Encoded]
    responses: list[str]
    truncated: NamedTensors  # see `Scored`; [batch] each, of the score models that may have to truncate
    verdicts: dict[str, Verdicts]  # of each judge, and of all
    figures: dict[str, tuple[torch.Tensor, torch.Tensor]]  # of tasks; see `Chosen`
    may_not_judge: list[str]  # objectives that may leave a response without a score
    not_finite: str | None  # what is not finite on some rank
    generation_seconds: float
    scoring_seconds: float = 0.0

    def some(self, rows: torch.Tensor) -> "Rollout":
        """What is logged of these rows alone, [k] int64; what is trained stays."""
        texts = {name: [getattr(self, name)[row] for row in rows.tolist()] for name in ("prompts", "responses")}
        verdicts = {name: Verdicts(v.passed[rows], v.judged[rows]) for name, v in self.verdicts.items()}
        truncated = {name: values[rows] for name, values in self.truncated.items()}
        experience = self.experience.select(rows)
        return dataclasses.replace(self, experience=experience, verdicts=verdicts, truncated=truncated, **texts)


def make_rollout(engine: RLHFEngine, prompts: list[Encoded], algorithm: Algorithm, args: argparse.Namespace) -> Rollout:
    """Let the policy answer `prompts` and compute everything the update needs."""
    start = time.monotonic()
    mixture, size = engine.mixture, args.per_device_prompt_batch_size
    with engine.actor.gathered():  # once for all
        if mixture:
            sampled = mixture.sample(engine.actor, prompts, engine.tokenizer, size)
        else:
            copies = args.responses_per_prompt or 1
            sampled = sample_responses(engine.actor.generate, prompts, engine.tokenizer, size, copies)
    generated = time.monotonic()
    beat("scoring")
    log_probs, hidden, values, graphs = passes_of_trained(engine, sampled, args)
    scored = score_responses(engine.scorers, sampled, args)
    verdicts = all_verdicts(engine.judges, Replies.of(sampled), scored, mixture and mixture.judged_by(sampled))
    experience = Experience(
        sampled.input_ids,
        sampled.attention_mask,
        sampled.mask,
        sampled.finished,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs(engine.reference, sampled, args),
        scores={o.name: scored[o.name].values for o in engine.objectives},
        judged={o.name: scored[o.name].judged for o in engine.objectives},
        values=values,
        hidden=hidden,
        graphs=graphs,
    )
    truncated = {name: part.truncated for name, part in scored.items() if part.truncated is not None}
    functions = [objective.name for objective in engine.objectives if objective.is_function]
    rollout = Rollout(
        experience, experience, sampled.prompts, sampled.responses, truncated, verdicts, {}, functions,
        experience.not_finite(), generated - start,
    )  # fmt: skip
    optimized = [objective for objective in engine.objectives if objective.optimized]
    if not rollout.not_finite and mixture:
        chosen = mixture.choose(experience, sampled, *training_scores(experience, optimized, args), verdicts)
        rollout.trained, rollout.figures = chosen.trained, chosen.figures
        rollout.not_finite = chosen.trained.not_finite()
    elif not rollout.not_finite:
        add_advantages(experience, optimized, algorithm, engine.needs, args)
        rollout.not_finite = experience.not_finite()
    rollout.scoring_seconds = time.monotonic() - generated
    return rollout.some(mixture.own_rows(sampled)) if mixture else rollout


def passes_of_trained(
    engine: RLHFEngine, sampled: Sampled, args: argparse.Namespace
) -> tuple[torch.Tensor | None, torch.Tensor | None, NamedTensors, Graphs | None]:
    """`Experience.log_probs`, `hidden`, `values` and `graphs`: what the models say that are trained."""
    if args.keep_graphs:
        graphs = passes_with_graphs(engine, sampled)
        outputs = [graphs.values[critic.names[0]].detach() for critic in engine.critics]
        log_probs = graphs.policy.log_probs.detach() * sampled.mask
        return log_probs, None, by_head(engine.critics, outputs, sampled), graphs
    log_probs = hidden = None
    if not update_tells_log_probs(args, engine.needs):
        log_probs, hidden = actor_log_probs(engine.actor, sampled, engine.needs, args)
    return log_probs, hidden, values_of_states(engine, sampled, args), None


def passes_with_graphs(engine: RLHFEngine, sampled: Sampled) -> Graphs:
    """Of policy and critics over the whole rollout."""
    inputs = sampled.input_ids, sampled.attention_mask, sampled.mask.shape[1]
    values = {critic.names[0]: values_before_actions(critic, *inputs) for critic in engine.critics}
    return Graphs(engine.actor.forward(*inputs), values)


@torch.no_grad()
def actor_log_probs(
    actor: Actor, sampled: Sampled, needs: Needs, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the actions, [batch, time], and `Experience.hidden` where an update has use for it.

    Where micro-batches accumulate, their gradients are compared before the first backward pass. For the first
    optimizer step the pass made here serves: the policy is still the same.
    """
    useful = keeps_head_inputs(args, needs.gram)
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
    outputs = [by_micro_batch(partial(values_before_actions, critic), sampled, args) for critic in engine.critics]
    return by_head(engine.critics, outputs, sampled)


def by_head(critics: list[Critic], outputs: list[torch.Tensor], sampled: Sampled) -> NamedTensors:
    """Values by name, [batch, time], from [batch, time, heads] of each critic."""
    return {
        name: output[..., head] * sampled.mask
        for critic, output in zip(critics, outputs, strict=True)
        for head, name in enumerate(critic.names)
    }


def add_advantages(
    experience: Experience,
    objectives: list[Objective],
    algorithm: Algorithm,
    needs: Needs,
    args: argparse.Namespace,
) -> None:
    """Advantages and returns of every loss, in place, and which responses count in it; the algorithm looks on."""
    scores, judged = training_scores(experience, objectives, args)
    seen = gathered(scores, judged) if needs.scores or needs.advantages else ()
    if needs.scores:
        algorithm.observe(*seen)
    columns, counted, estimator = scores, judged, estimator_of(args)
    if isinstance(algorithm, ScoreLevel):
        mixed = checked(algorithm.mix_scores(scores, judged), scores.shape[:1], algorithm, "mix_scores")
        counted = algorithm.counts(judged).unsqueeze(-1)
        columns = mixed.unsqueeze(-1).masked_fill(~counted, 0.0)
    kl_coeff = args.kl_coeff if kl_in(args) == "reward" else 0.0
    for i, loss in enumerate(algorithm.losses):
        experience.counted[loss] = counted[:, i].float()
        advantages, returns = estimator.estimate(loss, columns[:, i], experience, kl_coeff, args)
        experience.advantages[loss] = advantages * experience.counted[loss].unsqueeze(-1)
        if returns is not None:
            experience.returns[loss] = returns
    if args.whiten_advantages:
        whiten_advantages(experience)
    if needs.advantages:
        algorithm.observe_advantages(*seen, all_gather_rows(mean_advantages(experience, algorithm.losses)))


def gathered(scores: torch.Tensor, judged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of all ranks: [batch, m] each -> [responses, m] float32 and bool."""
    return all_gather_rows(scores), all_gather_rows(judged.float()) > 0


def mean_advantages(experience: Experience, losses: list[str]) -> torch.Tensor:
    """[batch, losses] float32, over the actions of a response."""
    lengths = experience.mask.sum(dim=-1)
    return torch.stack([experience.advantages[loss].sum(dim=-1) / lengths for loss in losses], dim=-1)


def training_scores(
    experience: Experience, objectives: list[Objective], args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the update sees of the scores of the optimized objectives, 0 where there is none; where there is one.

    A score that depends on another one (`--conditioned`) is 0 where that is less than it has to be, or was not judged.

    Returns:
        [batch, m] float32 and bool.
    """
    scores = {o.name: training_score(experience.scores[o.name], o.scale, experience.finished, args) for o in objectives}
    for objective in objectives:
        if condition := objective.condition:
            met = (experience.scores[condition.other] >= condition.least) & (experience.judged[condition.other] > 0)
            scores[objective.name] = scores[objective.name] * met
    judged = torch.stack([experience.judged[o.name] > 0 for o in objectives], dim=-1)
    return torch.stack([scores[o.name] for o in objectives], dim=-1) * judged, judged


def training_score(
    scores: torch.Tensor, scale: float, finished: torch.Tensor, args: argparse.Namespace
) -> torch.Tensor:
    """What the update sees of a score: clipped, less the penalty for a response without EOS, scaled; [batch]."""
    scores = scores.clamp(-args.clip_range_score, args.clip_range_score)
    return scale * (scores - args.missing_eos_penalty * (1.0 - finished))


def whiten_advantages(experience: Experience) -> None:
    """Give every loss's advantages zero mean and unit variance over all ranks' actions that count in it, in place.

    In float64 and two passes: Σ A² / n − mean² is nothing but rounding where the mean is far from zero.
    """
    for name, advantages in experience.advantages.items():
        mask = (experience.mask * experience.counted[name].unsqueeze(-1)).double()
        exact = advantages.double()
        count, total = all_reduce_sum(torch.stack([mask.sum(), (exact * mask).sum()]))
        count = count.clamp(min=1)
        mean = total / count
        variance = all_reduce_sum(((exact - mean).square() * mask).sum()) / count
        experience.advantages[name] = ppo.whiten(exact, mean, variance, mask).to(advantages.dtype)
