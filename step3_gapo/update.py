"""From experience to one optimizer step: the actor under the chosen algorithm, then every critic."""

import argparse

import torch

from step3_gapo import ppo
from step3_gapo.algorithms import Algorithm
from step3_gapo.head_gradients import global_gram, head_gradients, surrogate_slopes
from step3_gapo.multi_objective import cosine_matrix
from step3_gapo.rlhf_engine import Actor, ActorOutput, Critic
from step3_gapo.rollout import Experience
from utils.distributed import all_reduce_max, all_reduce_sum, print_main, world_size
from utils.errors import UserError

Scalars = dict[str, float]


class ActorUpdate:
    """Turns the objectives' losses {L_i} of one optimizer step into one update of the policy.

    All losses share one denominator: the number of actions in the step's whole batch, over micro-batches and
    ranks. Losses are scaled so that DeepSpeed's averaging over both gives exactly that global mean.
    """

    def __init__(self, actor: Actor, algorithm: Algorithm, names: list[str], args: argparse.Namespace):
        self.actor, self.algorithm, self.names, self.args = actor, algorithm, names, args
        self.warned: set[str] = set()

    def step(self, batches: list[Experience]) -> Scalars | None:
        """One optimizer step on this rank's micro-batches; metrics, or None when a non-finite gradient skipped it."""
        actions = all_reduce_sum(sum(batch.mask.sum() for batch in batches))
        output, scalars = None, {}
        if self.algorithm.coefficients is None:
            coefficients = self.algorithm.weights
        else:
            gram, output = self.gram_matrix(batches, actions)
            if not gram.isfinite().all():
                return None
            coefficients = self.algorithm.coefficients(gram)
            self.warn_of_zero_gradients(gram)
            scalars = gram_scalars(gram, coefficients, self.names)
            alpha = self.algorithm.alpha(gram, coefficients).tolist()
            scalars |= {f"alpha/{name}": a for name, a in zip(self.names, alpha, strict=True)}
        scalars |= {f"coefficient/{name}": c for name, c in zip(self.names, coefficients.tolist(), strict=True)}
        learning_rate = self.actor.engine.get_lr()[0]
        sums, maxima = [], []
        for batch in batches:
            batch_sums, batch_maximum = self.backward(output or self.forward(batch), batch, coefficients, actions)
            sums.append(batch_sums)
            maxima.append(batch_maximum)
            output = None
        loss, entropy, clipped, kl = (all_reduce_sum(sum(sums)) / actions).tolist()
        return scalars | {
            "loss/actor": loss,
            "entropy": entropy,
            "clip_fraction": clipped,
            "approximate_kl": kl,
            "ratio_error": all_reduce_max(max(maxima)).item(),
            "learning_rate/actor": learning_rate,
        }

    def warn_of_zero_gradients(self, gram: torch.Tensor) -> None:
        """One line, once an objective: it has weight 0 as long as its gradient vanishes."""
        for name, square in zip(self.names, gram.diagonal().tolist(), strict=True):
            if square == 0 and name not in self.warned:
                self.warned.add(name)
                print_main(f"warning: the gradient of {name} is zero; it has weight 0 until it is not")

    def forward(self, batch: Experience) -> ActorOutput:
        return self.actor.forward(batch.input_ids, batch.attention_mask, batch.mask.shape[1])

    def losses(self, log_probs: torch.Tensor, batch: Experience, actions: torch.Tensor) -> list[torch.Tensor]:
        """One clipped surrogate an objective (paper, eq. 15-16), same mask and denominator; m scalars."""
        return [
            ppo.clipped_surrogate_loss(
                log_probs, batch.log_probs, batch.advantages[name], batch.mask, self.args.clip_range_ratio, actions
            )
            for name in self.names
        ]

    def gram_matrix(self, batches: list[Experience], actions: torch.Tensor) -> tuple[torch.Tensor, ActorOutput | None]:
        """Gram matrix [m, m] of the last-layer gradients of the whole step.

        With one micro-batch its forward pass is handed on for the update; with several, a pass without
        gradients goes first, so that there is one Gram matrix a step whatever the accumulation.
        """
        single, gradients = len(batches) == 1, 0.0
        for batch in batches:
            with torch.set_grad_enabled(single):
                output = self.forward(batch)
            log_probs = ppo.log_probs_of(output.logits.detach(), batch.actions, self.args.temperature)
            slopes = surrogate_slopes(lambda values, b=batch: self.losses(values, b, actions), log_probs)
            gradients = gradients + head_gradients(
                output.logits.detach(), output.hidden.detach(), batch.actions, slopes, self.args.temperature
            )
        return global_gram(gradients), output if single else None

    def backward(
        self, output: ActorOutput, batch: Experience, coefficients: torch.Tensor, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Backward pass of one micro-batch and the engine's (accumulating) step.

        Returns:
            For the metrics: [4] sums of loss, entropy, clipped ratios and log-ratio; scalar maximum of |ratio - 1|.
        """
        log_probs = ppo.log_probs_of(output.logits, batch.actions, self.args.temperature)
        if self.algorithm.coefficients is None:
            advantages = mixed_advantages(batch, self.names, coefficients)
            loss = ppo.clipped_surrogate_loss(
                log_probs, batch.log_probs, advantages, batch.mask, self.args.clip_range_ratio, actions
            )
        else:
            losses = self.losses(log_probs, batch, actions)
            loss = sum(c * part for c, part in zip(coefficients.tolist(), losses, strict=True))
        require_finite(loss, "the actor's loss")
        self.actor.engine.backward(loss * world_size() * self.args.gradient_accumulation_steps)
        self.actor.engine.step()
        with torch.no_grad():
            entropy = (ppo.entropy_of(output.logits, self.args.temperature) * batch.mask).sum()
            clipped = ppo.clip_fraction(log_probs, batch.log_probs, batch.mask, self.args.clip_range_ratio, 1.0)
            kl = ((batch.log_probs - log_probs) * batch.mask).sum()
            ratio_error = ((torch.exp(log_probs - batch.log_probs) - 1.0).abs() * batch.mask).max()
            return torch.stack([loss.detach() * actions, entropy, clipped, kl]), ratio_error


def require_finite(loss: torch.Tensor, what: str) -> None:
    """Raise UserError, on all ranks together, rather than step on a loss that is not finite on one of them."""
    if all_reduce_sum((~loss.detach().isfinite()).float()).item():
        raise UserError(f"{what} is not finite: lower --actor_learning_rate or --critic_learning_rate")


def mixed_advantages(batch: Experience, names: list[str], weights: torch.Tensor) -> torch.Tensor:
    """Σ w_i A_i: by linearity of GAE, the advantage of the scalar reward Σ w_i r_i; [batch, time]."""
    return sum(w * batch.advantages[name] for w, name in zip(weights.tolist(), names, strict=True))


def gram_scalars(gram: torch.Tensor, coefficients: torch.Tensor, names: list[str]) -> Scalars:
    """What a Gram matrix says of a step: norms, cosines, the update's length, its progress on every objective."""
    norms, cosines = gram.diagonal().clamp(min=0).sqrt(), cosine_matrix(gram)
    progress = gram @ coefficients  # ⟨Δ, g_i⟩
    scalars = {"gradient/direction_norm": (coefficients @ progress).clamp(min=0).sqrt().item()}
    for i, name in enumerate(names):
        scalars[f"gradient/norm/{name}"] = norms[i].item()
        scalars[f"gradient/progress/{name}"] = progress[i].item()
        for j in range(i):
            scalars[f"gradient/cosine/{names[j]}_{name}"] = cosines[i, j].item()
    return scalars


def critic_step(critic: Critic, batches: list[Experience], args: argparse.Namespace) -> Scalars:
    """One optimizer step of one critic on this rank's micro-batches; its losses, one an objective."""
    actions = all_reduce_sum(sum(batch.mask.sum() for batch in batches))
    totals = torch.zeros(len(critic.names), device=batches[0].mask.device)
    for batch in batches:
        values = critic.engine(batch.input_ids, batch.attention_mask)[:, -batch.mask.shape[1] - 1 : -1]
        losses = torch.stack(
            [
                ppo.clipped_value_loss(
                    values[..., head],
                    batch.values[name],
                    batch.returns[name],
                    batch.mask,
                    args.clip_range_value,
                    actions,
                )
                for head, name in enumerate(critic.names)
            ]
        )
        require_finite(losses.sum(), f"the loss of the critic of {', '.join(critic.names)}")
        critic.engine.backward(losses.sum() * world_size() * args.gradient_accumulation_steps)
        critic.engine.step()
        totals += losses.detach()
    return {f"loss/critic/{n}": v for n, v in zip(critic.names, all_reduce_sum(totals).tolist(), strict=True)}
