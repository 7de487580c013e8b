"""From experience to one optimizer step: the actor under the chosen algorithm, then every critic."""

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from step3_gapo import ppo
from step3_gapo.algorithms import Algorithm, compares_gradients
from step3_gapo.critics import Critic
from step3_gapo.rollout import Experience
from utils.gradients.head import HeadGradients, surrogate_slopes
from utils.gradients.multi_objective import cosine_matrix
from utils.gradients.zero import ObjectiveGradients, forget_gradients, step_if_finite
from utils.policy.actor import Actor
from utils.policy.forward import NO_PLAIN_HEAD, PolicyOutput
from utils.process.distributed import all_reduce_max, all_reduce_sum, broadcast_from_main, print_main, world_size
from utils.process.errors import UserError

POLICY_GRADIENT = "the gradient of the policy"
Scalars = dict[str, float]
Statistics = tuple[torch.Tensor, torch.Tensor]  # see `ActorUpdate.statistics`


@dataclass
class Pass:
    """One forward pass of the policy over a micro-batch."""

    batch: Experience
    output: PolicyOutput


@dataclass
class Outcome:
    """What is known of a step once its gradient lies in the engine: metrics, and `statistics` of every micro-batch."""

    scalars: Scalars
    statistics: list[Statistics]


class ActorUpdate:
    """Turns the objectives' losses {L_i} of one optimizer step into one update of the policy.

    All losses share one denominator: the number of actions in the step's whole batch, over micro-batches and
    ranks. Losses are scaled so that DeepSpeed's averaging over both gives exactly that global mean.
    """

    def __init__(self, actor: Actor, algorithm: Algorithm, names: list[str], args: argparse.Namespace):
        self.actor, self.algorithm, self.names, self.args = actor, algorithm, names, args
        self.warned: set[str] = set()
        self.not_finite = ""  # what the last step failed on, where it did

    def accumulate(self, batches: list[Experience], on_policy: bool = False) -> Outcome | None:
        """Leave the gradient of one optimizer step on this rank's micro-batches in the policy's engine.

        Args:
            on_policy: the policy is still the one that computed the experience, which then can serve in place of a
                forward pass (`Experience.hidden`).

        Returns:
            None when what the objectives' gradients are compared by was not finite (`not_finite` says what it was).
        """
        actions = count_actions(batches)
        self.not_finite = POLICY_GRADIENT
        if self.args.gradient_scope == "full":
            outcome = self.combine_full_gradients(batches, actions)
        else:
            outcome = self.weigh_losses(batches, actions, on_policy)
        if outcome is None:
            forget_gradients(self.actor.engine)
            return None
        sums, maxima = zip(*outcome.statistics, strict=True)
        entropy, clipped, kl = (all_reduce_sum(sum(sums)) / actions).tolist()
        outcome.scalars |= {
            "entropy": entropy,
            "clip_fraction": clipped,
            "approximate_kl": kl,
            "ratio_error": all_reduce_max(max(maxima)).item(),
            "learning_rate/actor": self.actor.engine.get_lr()[0],
        }
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know, as JSON."""
        adaptive = self.algorithm.adaptive
        state = adaptive.state_dict() if adaptive else None
        return {"name": self.algorithm.name, "warned": sorted(self.warned), "adaptive": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.warned = set(state["warned"])
        if self.algorithm.adaptive and state["name"] == self.algorithm.name:
            self.algorithm.adaptive.load_state_dict(state["adaptive"])

    # --- two ways to the combined gradient; both leave it in the engine, and None if it is not finite

    def combine_full_gradients(self, batches: list[Experience], actions: torch.Tensor) -> Outcome | None:
        """Scope `full`: a backward pass an objective, all parameters' gradients compared, then combined."""
        gradients, totals, statistics = ObjectiveGradients(self.actor.engine, len(self.names)), 0.0, []
        for batch in batches:
            losses, numbers = self.add_full_gradients(gradients, batch, actions)
            totals = totals + losses
            statistics.append(numbers)
        coefficients, scalars = self.weigh(gradients.gram())
        if not coefficients.isfinite().all():
            return None
        gradients.combine(coefficients)
        loss = coefficients @ all_reduce_sum(totals).cpu().double()
        return Outcome(scalars | {"loss/actor": loss.item()}, statistics)

    def add_full_gradients(
        self, gradients: ObjectiveGradients, batch: Experience, actions: torch.Tensor
    ) -> tuple[torch.Tensor, Statistics]:
        """Add one micro-batch's part to every objective's gradient; its [m] losses, and its statistics."""
        engine, m = self.actor.engine, len(self.names)
        # ZeRO-3 releases the parameters with the first backward pass: there, each needs a forward pass of its own.
        once = engine.zero_optimization_stage() < 3
        for i in range(m):
            if i == 0 or not once:
                done = losses = None  # before another pass makes logits
                done = self.run(batch)
                losses = self.losses(done.output.log_probs, batch, actions)
            forget_gradients(engine)
            self.backward(losses[i], boundary=True, retain_graph=once and i + 1 < m)
            gradients.add(i)
        return torch.stack(losses).detach(), self.statistics(done)

    def weigh_losses(self, batches: list[Experience], actions: torch.Tensor, on_policy: bool) -> Outcome | None:
        """Scope `last_layer`, and the reward level: a backward pass of the combined loss.

        A group of micro-batches shares its coefficients: all of a step, or with `--gram_per micro_batch` just one.
        """
        by_micro_batch = self.args.gram_per == "micro_batch"
        total, logged, statistics = 0.0, [], []
        for group in [[batch] for batch in batches] if by_micro_batch else [batches]:
            coefficients, passes = self.algorithm.weights, []
            if compares_gradients(self.args):
                gram, passes = self.head_gram(group, on_policy)
                coefficients, scalars = self.weigh(gram)
                if not coefficients.isfinite().all():
                    return None
            else:
                scalars = self.named("coefficient", coefficients)
            logged.append(scalars)
            for batch in group:
                boundary = batch is batches[-1]
                loss, numbers = self.add_combined_gradient(passes, batch, coefficients, actions, boundary)
                total = total + loss
                statistics.append(numbers)
        scalars = {tag: sum(one[tag] for one in logged) / len(logged) for tag in logged[0]}
        return Outcome(scalars | {"loss/actor": all_reduce_sum(total).item()}, statistics)

    def add_combined_gradient(
        self,
        passes: list[Pass],
        batch: Experience,
        coefficients: torch.Tensor,
        actions: torch.Tensor,
        boundary: bool,
    ) -> tuple[torch.Tensor, Statistics]:
        """Backward pass of one micro-batch's combined loss, from a pass if there is one; that loss, its statistics."""
        done = passes.pop() if passes else self.run(batch)
        loss = self.combined_loss(done, coefficients, actions)
        self.backward(loss, boundary)
        return loss.detach(), self.statistics(done)

    # --- gradients compared

    def head_gram(self, batches: list[Experience], on_policy: bool) -> tuple[torch.Tensor, list[Pass]]:
        """Gram matrix of the last-layer gradients of the mean losses over these micro-batches.

        A single micro-batch's forward pass is handed on for the update. Several need a pass without gradients
        before it, or what the rollout has kept of one while the policy is still the same.

        Returns:
            [m, m] float64 on the host; the passes to go on with.
        """
        gradients = HeadGradients(self.actor, len(self.names), self.args.temperature)
        actions = count_actions(batches)
        if len(batches) == 1:
            passes = [self.run(batches[0])]
            self.add_head_gradients(gradients, passes[0], actions)
            return gradients.gram(), passes
        for batch in batches:
            if on_policy and batch.hidden is not None:
                kept = Pass(batch, PolicyOutput(batch.log_probs, batch.hidden))
                self.add_head_gradients(gradients, kept, actions)
            else:
                with torch.no_grad():
                    self.add_head_gradients(gradients, self.run(batch), actions)
        return gradients.gram(), []

    def add_head_gradients(self, gradients: HeadGradients, done: Pass, actions: torch.Tensor) -> None:
        """Add one micro-batch's part, from a pass whose logits may be missing, to the last-layer gradients."""
        self.require_plain_head()
        slopes = surrogate_slopes(lambda values: self.losses(values, done.batch, actions), done.output.log_probs)
        gradients.add(done.output.hidden, done.output.logits, done.batch.actions, slopes)

    def require_plain_head(self) -> None:
        """Raise UserError where the derivative of the logits is not that of the output head."""
        if not self.actor.forward.has_plain_head:
            raise UserError(NO_PLAIN_HEAD)

    def weigh(self, gram: torch.Tensor) -> tuple[torch.Tensor, Scalars]:
        """Coefficients [m] of the losses, and what to log of them; NaN where the Gram matrix is not finite."""
        if not gram.isfinite().all():
            return torch.full((len(gram),), torch.nan, dtype=torch.float64), {}
        reward_level = self.algorithm.coefficients is None
        coefficients = self.algorithm.weights if reward_level else self.algorithm.coefficients(gram)
        coefficients = broadcast_from_main(coefficients)  # some weightings draw random numbers
        if not coefficients.isfinite().all():
            self.not_finite = f"what --algorithm {self.algorithm.name} makes of the gradients"
            return coefficients, {}
        self.warn_of_zero_gradients(gram)
        scalars = gram_scalars(gram, coefficients, self.names) | self.named("coefficient", coefficients)
        if not reward_level:
            scalars |= self.named("alpha", self.algorithm.alpha(gram, coefficients))
        return coefficients, scalars

    def warn_of_zero_gradients(self, gram: torch.Tensor) -> None:
        """One line, once an objective: it has weight 0 as long as its gradient vanishes."""
        for name, square in zip(self.names, gram.diagonal().tolist(), strict=True):
            if square == 0 and name not in self.warned:
                self.warned.add(name)
                print_main(f"warning: the gradient of {name} is zero; it has weight 0 until it is not")

    def named(self, tag: str, values: torch.Tensor) -> Scalars:
        return {f"{tag}/{name}": value for name, value in zip(self.names, values.tolist(), strict=True)}

    # --- passes

    def run(self, batch: Experience) -> Pass:
        return Pass(batch, self.actor.forward(batch.input_ids, batch.attention_mask, batch.mask.shape[1]))

    def surrogate_loss(
        self, log_probs: torch.Tensor, batch: Experience, advantages: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        """Clipped surrogate (paper, eq. 15-16) over `actions` in all; scalar."""
        clip_range = self.args.clip_range_ratio
        return ppo.clipped_surrogate_loss(log_probs, batch.log_probs, advantages, batch.mask, clip_range, actions)

    def losses(self, log_probs: torch.Tensor, batch: Experience, actions: torch.Tensor) -> list[torch.Tensor]:
        """One surrogate an objective, same mask and denominator; m scalars."""
        return [self.surrogate_loss(log_probs, batch, batch.advantages[name], actions) for name in self.names]

    def combined_loss(self, done: Pass, coefficients: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Σ c_i L_i; on the reward level the loss of Σ w_i A_i, the advantage of Σ w_i r_i by linearity of GAE.

        The two differ, by where they clip, once the policy has moved.
        """
        weights, batch = coefficients.tolist(), done.batch
        if self.algorithm.coefficients is None:
            mixed = sum(w * batch.advantages[name] for w, name in zip(weights, self.names, strict=True))
            return self.surrogate_loss(done.output.log_probs, batch, mixed, actions)
        losses = self.losses(done.output.log_probs, batch, actions)
        return sum(c * loss for c, loss in zip(weights, losses, strict=True))

    def backward(self, loss: torch.Tensor, boundary: bool, retain_graph: bool = False) -> None:
        """Backward pass of a part of the global mean; at a `boundary` DeepSpeed makes the gradient of all parts."""
        engine = self.actor.engine
        engine.set_gradient_accumulation_boundary(boundary)
        engine.backward(loss * world_size(), retain_graph=retain_graph, scale_wrt_gas=False)

    @torch.no_grad()
    def statistics(self, done: Pass) -> Statistics:
        """[3] sums of entropy, clipped ratios and log-ratio over actions; scalar maximum of |ratio - 1|."""
        batch, log_probs = done.batch, done.output.log_probs.detach()
        entropy = (done.output.entropy * batch.mask).sum()
        clipped = ppo.clip_fraction(log_probs, batch.log_probs, batch.mask, self.args.clip_range_ratio, 1.0)
        kl = ((batch.log_probs - log_probs) * batch.mask).sum()
        ratio_error = ((torch.exp(log_probs - batch.log_probs) - 1.0).abs() * batch.mask).max()
        return torch.stack([entropy, clipped, kl]), ratio_error


def count_actions(batches: list[Experience]) -> torch.Tensor:
    """Actions in these micro-batches of all ranks; scalar."""
    return all_reduce_sum(sum(batch.mask.sum() for batch in batches))


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
    outcome = actor_update.accumulate(batches, on_policy)
    if outcome is None:
        return {}, actor_update.not_finite
    scalars, engines = outcome.scalars, {POLICY_GRADIENT: actor_update.actor.engine}
    for critic in critics:
        scalars |= accumulate_critic_gradient(critic, batches, args)
        engines[f"the gradient of the critic of {', '.join(critic.names)}"] = critic.engine
    norms, not_finite = step_if_finite(engines)
    if not_finite:
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
