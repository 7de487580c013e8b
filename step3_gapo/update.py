"""From experience to one optimizer step: the actor under the chosen algorithm, then every critic."""

import argparse
import copy
from dataclasses import dataclass
from typing import Any

import torch

from step3_gapo import ppo
from step3_gapo.critics import Critic
from step3_gapo.experience import Experience
from step3_gapo.needs import Needs
from step3_gapo.policy_losses import DEFAULT, POLICY_LOSSES
from utils.combining.algorithm import AdvantageLevel, Algorithm, GradientLevel, checked
from utils.gradients.multi_objective import cosine_matrix
from utils.gradients.step import ObjectiveStep, loss_slopes
from utils.gradients.zero import step_if_finite
from utils.policy.actor import Actor
from utils.policy.forward import PolicyOutput
from utils.process.distributed import all_reduce_max, all_reduce_sum, broadcast_from_main, print_main, world_size

POLICY_GRADIENT = "the gradient of the policy"
Scalars = dict[str, float]
Statistics = tuple[torch.Tensor, torch.Tensor]  # see `ActorUpdate.statistics`


@dataclass
class Look:
    """What is known of a micro-batch before the backward pass of its combined loss.

    Attributes:
        output: of a forward pass that goes on; None where another one follows.
        losses: [m], where their gradients are compared.
    """

    batch: Experience
    output: PolicyOutput | None
    losses: torch.Tensor | None


class ActorUpdate:
    """Turns the losses {L_i} of one optimizer step into one update of the policy.

    All losses share one denominator: the number of actions in the step's whole batch, over micro-batches and ranks.
    """

    def __init__(self, actor: Actor, algorithm: Algorithm, needs: Needs, args: argparse.Namespace):
        self.actor, self.algorithm, self.needs, self.args = actor, algorithm, needs, args
        self.names, self.policy_loss = needs.losses, POLICY_LOSSES[args.policy_loss or DEFAULT]
        self.warned: set[str] = set()
        self.not_finite = ""  # what the last step failed on, where it did

    def accumulate(self, batches: list[Experience], on_policy: bool = False) -> Scalars | None:
        """Leave the gradient of one optimizer step on this rank's micro-batches in the policy's engine.

        Args:
            on_policy: the policy is still the one that computed the experience, which then can serve in place of a
                forward pass (`Experience.hidden`).

        Returns:
            Metrics; None when what the gradients are compared by was not finite (`not_finite` says what it was).
        """
        actions, logged, losses, statistics = count_actions(batches), [], [], []
        step = ObjectiveStep(self.actor, self.scope, len(self.names), self.args.temperature)
        for group in self.groups(batches):
            total = actions if len(group) == len(batches) or not self.needs.gram else count_actions(group)
            again = self.scope == "last_layer" and len(group) > 1
            looks = [self.look(step, batch, total, again, on_policy) for batch in group]  # forward, losses, slopes
            coefficients, scalars = self.weigh(step.gram(), looks)
            if scalars is None:
                return step.forget()
            logged.append(scalars)
            for look in looks:
                output = look.output or step.forward(look.batch)
                loss, slope = self.combined(look.batch, output.log_probs, coefficients, actions)
                step.descend(output, slope, boundary=look.batch is batches[-1])
                losses.append(loss)
                statistics.append(self.statistics(look.batch, output))
                output = look.output = None  # its graph and logits, before another pass makes them
        step.finish(coefficients)
        return mean_over_groups(logged) | self.step_scalars(losses, statistics, actions)

    @property
    def scope(self) -> str | None:
        """Which gradients are compared, if any."""
        return self.args.gradient_scope if self.needs.gram else None

    def groups(self, batches: list[Experience]) -> list[list[Experience]]:
        """Micro-batches that share their coefficients: all of a step, with `--gram_per micro_batch` each for itself.

        Where none are compared, one is done after the other.
        """
        apart = self.args.gram_per == "micro_batch" or not self.needs.gram
        return [[batch] for batch in batches] if apart else [batches]

    def look(self, step: ObjectiveStep, batch: Experience, total: torch.Tensor, again: bool, on_policy: bool) -> Look:
        """Forward pass, losses and slopes of a micro-batch, and its part of what is compared.

        Args:
            total: actions that the losses are means over.
            again: at scope last_layer, several micro-batches that share their coefficients need a pass without
                gradients before the one that goes on, or what the rollout has kept of one while the policy is the same.
        """
        known = PolicyOutput(batch.log_probs, batch.hidden) if on_policy and batch.hidden is not None else None
        output, losses = step.look(batch, again, known), None
        if self.needs.gram:
            losses, slopes = loss_slopes(lambda values: self.losses(values, batch, total), output.log_probs)
            step.compare(batch, output, slopes)
        return Look(batch, None if again else output, losses)

    def weigh(self, gram: torch.Tensor | None, looks: list[Look]) -> tuple[torch.Tensor | None, Scalars | None]:
        """Coefficients [m] of the losses, or weights of what they are mixed from, where there are some.

        Args:
            gram: [m, m] float64, if gradients are compared.

        Returns:
            Also what to log of them; None in its place where something is not finite (see `not_finite`).
        """
        self.not_finite, coefficients = POLICY_GRADIENT, self.algorithm.weights
        if gram is None:
            return coefficients, self.named("coefficient", coefficients)
        if not gram.isfinite().all():
            return None, None
        weighs_gradients = isinstance(self.algorithm, GradientLevel)
        if weighs_gradients:
            losses = all_reduce_sum(sum(look.losses for look in looks)).cpu().double()
            coefficients = broadcast_from_main(self.algorithm.weigh(gram, losses))  # some draw random numbers
            if not coefficients.isfinite().all():
                self.not_finite = f"what --algorithm {self.algorithm.name} makes of the gradients"
                return None, None
        self.warn_of_zero_gradients(gram)
        scalars = gram_scalars(gram, coefficients, self.names) | self.named("coefficient", coefficients)
        if weighs_gradients:
            scalars |= self.named("alpha", self.algorithm.alpha(gram, coefficients))
        return coefficients, scalars

    def losses(self, log_probs: torch.Tensor, batch: Experience, total: torch.Tensor) -> list[torch.Tensor]:
        """One loss a name, same mask and denominator; m scalars."""
        return [self.policy_loss(log_probs, batch, batch.advantages[name], total, self.args) for name in self.names]

    def combined(
        self, batch: Experience, log_probs: torch.Tensor, coefficients: torch.Tensor | None, total: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The combined loss of a micro-batch, a scalar, and its slope [rows, time].

        Σ c_i L_i, whose slope is Σ c_i ∂L_i/∂log π; or the loss of one advantage. The two differ, by where they clip,
        once the policy has moved.
        """
        if isinstance(self.algorithm, GradientLevel):
            weights = coefficients.tolist()
            loss = lambda values: sum(
                c * part for c, part in zip(weights, self.losses(values, batch, total), strict=True)
            )
        else:
            advantage = self.mixed_advantage(batch, log_probs.detach())
            loss = lambda values: self.policy_loss(values, batch, advantage, total, self.args)
        losses, slopes = loss_slopes(lambda values: [loss(values)], log_probs)
        return losses[0], slopes[0]

    def mixed_advantage(self, batch: Experience, log_probs: torch.Tensor) -> torch.Tensor:
        """The advantage of a method that has one loss; [rows, time] float32."""
        advantages = torch.stack([batch.advantages[name] for name in self.names])
        if isinstance(self.algorithm, AdvantageLevel):
            mixed = self.algorithm.mix(advantages, torch.exp(log_probs - batch.log_probs), batch.mask)
            return checked(mixed, batch.mask.shape, self.algorithm, "mix")
        return advantages[0]

    # --- what is logged, and what is kept

    def step_scalars(self, losses: list[torch.Tensor], statistics: list[Statistics], actions: torch.Tensor) -> Scalars:
        """Metrics of the step, over micro-batches and ranks."""
        sums, maxima = zip(*statistics, strict=True)
        entropy, clipped, kl = (all_reduce_sum(sum(sums)) / actions).tolist()
        return {
            "loss/actor": all_reduce_sum(sum(losses)).item(),
            "entropy": entropy,
            "clip_fraction": clipped,
            "approximate_kl": kl,
            "ratio_error": all_reduce_max(max(maxima)).item(),
            "learning_rate/actor": self.actor.engine.get_lr()[0],
        }

    @torch.no_grad()
    def statistics(self, batch: Experience, output: PolicyOutput) -> Statistics:
        """[3] sums of entropy, clipped ratios and log-ratio over actions; scalar maximum of |ratio - 1|."""
        log_probs = output.log_probs.detach()
        entropy = (output.entropy * batch.mask).sum()
        clipped = ppo.clip_fraction(log_probs, batch.log_probs, batch.mask, self.args.clip_range_ratio, 1.0)
        kl = ((batch.log_probs - log_probs) * batch.mask).sum()
        ratio_error = ((torch.exp(log_probs - batch.log_probs) - 1.0).abs() * batch.mask).max()
        return torch.stack([entropy, clipped, kl]), ratio_error

    def warn_of_zero_gradients(self, gram: torch.Tensor) -> None:
        """One line, once an objective: it has weight 0 as long as its gradient vanishes."""
        for name, square in zip(self.names, gram.diagonal().tolist(), strict=True):
            if square == 0 and name not in self.warned:
                self.warned.add(name)
                print_main(f"warning: the gradient of {name} is zero; it has weight 0 until it is not")

    def named(self, tag: str, values: torch.Tensor | None) -> Scalars:
        """Scalars of values [m], of which there may be none."""
        if values is None:
            return {}
        return {f"{tag}/{name}": value for name, value in zip(self.names, values.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know, as JSON."""
        own = self.algorithm.state_dict() or None
        return {"name": self.algorithm.name, "warned": sorted(self.warned), "adaptive": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warned = set(state["warned"])
        if state["adaptive"] and state["name"] == self.algorithm.name:
            self.algorithm.load_state_dict(state["adaptive"])


def mean_over_groups(groups: list[Scalars]) -> Scalars:
    """Mean over groups of micro-batches, tag by tag; what is the same in all of them is left as it is."""
    columns = {tag: [scalars[tag] for scalars in groups] for tag in groups[0]}
    return {tag: v[0] if min(v) == max(v) else sum(v) / len(v) for tag, v in columns.items()}


def count_actions(batches: list[Experience]) -> torch.Tensor:
    """Actions in these micro-batches of all ranks; scalar."""
    return all_reduce_sum(sum(batch.mask.sum() for batch in batches))


def gram_scalars(gram: torch.Tensor, coefficients: torch.Tensor | None, names: list[str]) -> Scalars:
    """What a Gram matrix says of a step: norms, cosines; with coefficients, the update's length and its progress on
    every objective."""
    norms, cosines = gram.diagonal().clamp(min=0).sqrt(), cosine_matrix(gram)
    scalars, progress = {}, None
    if coefficients is not None:
        progress = gram @ coefficients  # ⟨Δ, g_i⟩
        scalars["gradient/direction_norm"] = (coefficients @ progress).clamp(min=0).sqrt().item()
    for i, name in enumerate(names):
        scalars[f"gradient/norm/{name}"] = norms[i].item()
        if progress is not None:
            scalars[f"gradient/progress/{name}"] = progress[i].item()
        for j in range(i):
            scalars[f"gradient/cosine/{names[j]}_{name}"] = cosines[i, j].item()
    return scalars


def optimizer_step(
    actor_update: ActorUpdate,
    critics: list[Critic],
    batches: list[Experience],
    on_policy: bool,
    args: argparse.Namespace,
) -> tuple[Scalars, str | None]:
    """One step of the policy and of every critic; or of none, where something is not finite on some rank.

    All gradients are there before the first step: memory for the critics' beside the policy's is the price.

    Returns:
        Metrics, empty when there was no step; what was not finite, if anything.
    """
    state = copy.deepcopy(actor_update.algorithm.state_dict())
    scalars = actor_update.accumulate(batches, on_policy)
    if scalars is None:
        actor_update.algorithm.load_state_dict(state)
        return {}, actor_update.not_finite
    engines = {POLICY_GRADIENT: actor_update.actor.engine}
    for critic in critics:
        scalars |= accumulate_critic_gradient(critic, batches, args)
        engines[f"the gradient of the critic of {', '.join(critic.names)}"] = critic.engine
    norms, not_finite = step_if_finite(engines)
    if not_finite:
        actor_update.algorithm.load_state_dict(state)
        return {}, not_finite
    if on_policy:
        scalars |= {f"first_minibatch/{tag}": scalars[tag] for tag in ("approximate_kl", "ratio_error")}
    return scalars | {"gradient/step_norm": norms[POLICY_GRADIENT]}, None


def accumulate_critic_gradient(critic: Critic, batches: list[Experience], args: argparse.Namespace) -> Scalars:
    """Leave the gradient of one optimizer step on this rank's micro-batches in a critic's engine.

    Returns:
        Its losses, one an objective.
    """
    actions = count_actions(batches)
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
        critic.engine.set_gradient_accumulation_boundary(batch is batches[-1])
        critic.engine.backward(losses.sum() * world_size(), scale_wrt_gas=False)
        totals += losses.detach()
    return {f"loss/critic/{n}": v for n, v in zip(critic.names, all_reduce_sum(totals).tolist(), strict=True)}
