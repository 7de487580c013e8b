"""From experience to one optimizer step: the actor under the chosen algorithm, then every critic."""

import argparse
import copy
from dataclasses import dataclass, field

import torch

from step3_gapo import ppo
from step3_gapo.critics import Critic, values_before_actions
from step3_gapo.experience import Experience
from step3_gapo.needs import Needs, kl_in, policy_loss_of
from utils.combining.algorithm import AdvantageLevel, Algorithm, GradientLevel, LossLevel, checked
from utils.combining.weighing import Scalars, Weigher
from utils.gradients.step import ObjectiveStep, loss_slopes
from utils.gradients.zero import step_if_finite
from utils.policy.actor import Actor
from utils.policy.forward import PolicyOutput
from utils.process.distributed import all_reduce_max, all_reduce_sum, world_size

POLICY_GRADIENT = "the gradient of the policy"
Statistics = tuple[torch.Tensor, torch.Tensor]  # see `ActorUpdate.statistics`


@dataclass
class Look:
    """What is known of a micro-batch before the backward pass of its combined loss.

    Attributes:
        output: of a forward pass that goes on; None where another one follows.
        losses: [m], where their gradients are compared.
        compared: whether they are.
        pooled: [k], see `AdvantageLevel.pool`.
    """

    batch: Experience
    output: PolicyOutput | None = None
    losses: torch.Tensor | None = None
    compared: bool = False
    pooled: torch.Tensor | None = None


@dataclass(frozen=True)
class StepBatches:
    """This rank's micro-batches of an optimizer step.

    Attributes:
        compared: those whose gradients are compared, if any are.
        others: those that only descend (`--gram_fraction`).
    """

    compared: list[Experience]
    others: list[Experience] = field(default_factory=list)

    @property
    def all(self) -> list[Experience]:
        return self.compared + self.others


class ActorUpdate:
    """Turns the losses {L_i} of one optimizer step into one update of the policy.

    Every loss is a mean over the actions, or the responses, that count in it, in the step's whole batch, over
    micro-batches and ranks: all of them, unless an objective has not judged some responses, or a task does not train
    them.
    """

    def __init__(self, actor: Actor, algorithm: Algorithm, needs: Needs, args: argparse.Namespace):
        self.actor, self.algorithm, self.needs, self.args = actor, algorithm, needs, args
        self.names, self.policy_loss = needs.losses, policy_loss_of(args)
        self.kl_coeff = args.kl_coeff if kl_in(args) == "loss" else 0.0
        warns = not self.policy_loss.by_task  # tasks that teach nothing are warned of by rollouts
        self.weigher = Weigher(algorithm, self.names, needs.gram, args.gram_every or 1, warns)

    def accumulate(self, batches: StepBatches, on_policy: bool = False) -> Scalars | None:
        """Leave the gradient of one optimizer step on this rank's micro-batches in the policy's engine.

        Args:
            on_policy: the policy is still the one that computed the experience, which then can serve in place of a
                forward pass (`Experience.hidden`).

        Returns:
            Metrics; None when what the gradients are compared by was not finite (`weigher.not_finite` says what).
        """
        scope = self.scope  # of this step
        others = [Look(batch) for batch in batches.others] if scope else []
        told = any(batch.log_probs is None for batch in batches.all)
        counted, logged, losses, statistics = self.counted(batches.all), [], [], []
        units = counted.clamp(min=1)  # so that a mean of none is 0
        each: list[torch.Tensor] = []  # of the losses, where their weights go by them
        step = ObjectiveStep(self.actor, scope, len(self.names), self.args.temperature, rest=bool(others))
        for group in self.groups(batches, scope):
            whole = len(group) == len(batches.all) or not scope
            there = counted if whole else self.counted(group)
            total, present = there.clamp(min=1), (there > 0).tolist()[:-1]
            again = len(group) > 1 and (scope == "last_layer" or self.needs.pools)
            looks = [self.look(step, batch, total, again, on_policy) for batch in group]  # forward, losses, slopes
            self.settle(looks)
            parts = sum(look.losses for look in looks) if scope else None
            coefficients, scalars = self.weigher.weigh(step.gram(), parts, POLICY_GRADIENT, present)
            if scalars is None:
                step.forget()
                return None
            logged.append(scalars)
            for look in looks + others:
                output = look.output or self.forward(step, look.batch)
                loss, slope = self.combined(look.batch, output.log_probs, coefficients, units)
                step.descend(output, slope, look.compared, boundary=look.batch is batches.all[-1])
                losses.append(loss)
                if isinstance(self.algorithm, LossLevel):
                    each.append(torch.stack(self.losses(output.log_probs.detach(), look.batch, units)))
                statistics.append(self.statistics(look.batch, output))
                output = look.output = None  # its graph and logits, before another pass makes them
        step.finish(coefficients, (total / units)[:-1])
        self.weigher.took_step(compared=bool(scope))
        if isinstance(self.algorithm, LossLevel):
            self.algorithm.observe_losses(all_reduce_sum(sum(each)).cpu().double(), (counted > 0).tolist()[:-1])
        return mean_over_groups(logged) | self.step_scalars(losses, statistics, told)

    @property
    def scope(self) -> str | None:
        """Which gradients are compared, if any; none in steps that go by coefficients that are kept."""
        return self.args.gradient_scope if self.weigher.compares_now else None

    def groups(self, batches: StepBatches, scope: str | None) -> list[list[Experience]]:
        """Micro-batches that share what is known before they descend: all that are compared in a step, with
        `--gram_per micro_batch` each for itself.

        Where there is nothing to know, one is done after the other.
        """
        together = self.needs.pools or (scope and self.args.gram_per == "step")
        return [batches.compared] if together else [[batch] for batch in batches.all]

    def look(self, step: ObjectiveStep, batch: Experience, total: torch.Tensor, again: bool, on_policy: bool) -> Look:
        """Forward pass, losses and slopes of a micro-batch, and its part of what is compared or pooled.

        Args:
            total: [m + 1], see `counted`.
            again: several micro-batches that share what is known of them need a pass without gradients before the one
                that goes on, or what the rollout has kept of one while the policy is the same.
        """
        known = None
        if again and on_policy and (batch.hidden is not None or not step.scope):
            known = PolicyOutput(batch.log_probs, batch.hidden)
        output = known or self.forward(step, batch, graph=not again)
        look = Look(batch, None if again else output)
        if step.scope:
            look.losses, slopes = loss_slopes(lambda values: self.losses(values, batch, total), output.log_probs)
            step.compare(batch, output, slopes)
            look.compared = True
        if self.needs.pools:
            look.pooled = self.algorithm.pool(*self.mixing(batch, output.log_probs))
        return look

    def forward(self, step: ObjectiveStep, batch: Experience, graph: bool = True) -> PolicyOutput:
        """A pass of the policy, which tells what was sampled with, where that is still the same and nobody knows."""
        output = batch.graphs.take_policy() if batch.graphs else step.forward(batch, graph)
        if batch.log_probs is None:
            batch.log_probs = output.log_probs.detach() * batch.mask
        return output

    def settle(self, looks: list[Look]) -> None:
        """Tell the algorithm what it has wanted to know of the whole step."""
        if self.needs.pools:
            self.algorithm.settle(all_reduce_sum(sum(look.pooled for look in looks)))

    def losses(self, log_probs: torch.Tensor, batch: Experience, totals: torch.Tensor) -> list[torch.Tensor]:
        """One loss a name, over what counts in it; m scalars.

        Args:
            totals: [m + 1], see `counted`.
        """
        counts = batch.units(self.names, self.policy_loss.per_response)[:-1]
        return [
            self.loss(log_probs, batch, batch.advantages[name], units, total)
            for name, units, total in zip(self.names, counts, totals[:-1], strict=True)
        ]

    def counted(self, batches: list[Experience]) -> torch.Tensor:
        """What counts in each loss, and in any, over all ranks: actions, or responses; [m + 1] float32."""
        return counted_units(batches, self.names, self.policy_loss.per_response)

    def loss(
        self,
        log_probs: torch.Tensor,
        batch: Experience,
        advantage: torch.Tensor,
        units: torch.Tensor,
        total: torch.Tensor,
    ) -> torch.Tensor:
        """Policy loss, and the penalty β KL where it is a term of the loss: a micro-batch's part of means over `total`
        units, `units` of them here (see `PolicyLoss.loss`); scalar."""
        loss = self.policy_loss.loss(log_probs, batch, advantage, units, total, self.args)
        if self.kl_coeff:
            kl = ppo.kl_estimate(log_probs * batch.mask, batch.ref_log_probs)  # both 0 on padding
            loss = loss + self.kl_coeff * ppo.masked_mean(kl, units, total)
        return loss

    def combined(
        self, batch: Experience, log_probs: torch.Tensor, coefficients: torch.Tensor | None, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The combined loss of a micro-batch, a scalar, and its slope [rows, time].

        Σ c_i L_i, whose slope is Σ c_i ∂L_i/∂log π; or the loss of one advantage. The two differ, by where they clip,
        once the policy has moved.
        """
        if isinstance(self.algorithm, GradientLevel | LossLevel):
            weights = coefficients.tolist()
            loss = lambda values: sum(
                c * part for c, part in zip(weights, self.losses(values, batch, totals), strict=True)
            )
        else:
            advantage, units = self.mixed_advantage(batch, log_probs.detach()), batch.units(self.names)[-1]
            loss = lambda values: self.loss(values, batch, advantage, units, totals[-1])
        losses, slopes = loss_slopes(lambda values: [loss(values)], log_probs)
        return losses[0], slopes[0]

    def mixed_advantage(self, batch: Experience, log_probs: torch.Tensor) -> torch.Tensor:
        """The advantage of a method that has one loss; [rows, time] float32."""
        if isinstance(self.algorithm, AdvantageLevel):
            mixed = self.algorithm.mix(*self.mixing(batch, log_probs))
            return checked(mixed, batch.mask.shape, self.algorithm, "mix")
        return batch.advantages[self.names[0]]

    def mixing(
        self, batch: Experience, log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `AdvantageLevel.mix` is called with."""
        advantages = torch.stack([batch.advantages[name] for name in self.names])
        judged = torch.stack([batch.counted[name] > 0 for name in self.names])
        return advantages, torch.exp(log_probs.detach() - batch.log_probs), batch.mask, judged

    # --- what is logged, and what is kept

    def step_scalars(self, losses: list[torch.Tensor], statistics: list[Statistics], told: bool) -> Scalars:
        """Metrics of the step, over micro-batches and ranks.

        Args:
            told: whether the step's own passes have told the log-probabilities of what was sampled, a whole rollout.
        """
        sums, maxima = zip(*statistics, strict=True)
        *sums, kl, actions, responses = all_reduce_sum(sum(sums))
        entropy, clipped, moved = (torch.stack(sums) / actions).tolist()
        scalars = {
            "loss/actor": all_reduce_sum(sum(losses)).item(),
            "entropy": entropy,
            "clip_fraction": clipped,
            "approximate_kl": moved,
            "ratio_error": all_reduce_max(max(maxima)).item(),
            "learning_rate/actor": self.actor.engine.get_lr()[0],
        }
        return scalars | ({"kl": (kl / responses).item()} if told else {})

    @torch.no_grad()
    def statistics(self, batch: Experience, output: PolicyOutput) -> Statistics:
        """[6] sums: of entropy, clipped ratios, log-ratio to the policy that sampled, and of that to the reference over
        actions; numbers of actions and of responses. Scalar maximum of |ratio - 1|."""
        log_probs = output.log_probs.detach()
        entropy = (output.entropy * batch.mask).sum()
        clipped = ppo.clip_fraction(log_probs, batch.log_probs, batch.mask, self.args.clip_range_ratio, 1.0)
        moved = ((batch.log_probs - log_probs) * batch.mask).sum()
        kl = ((batch.log_probs - batch.ref_log_probs) * batch.mask).sum()
        ratio_error = ((torch.exp(log_probs - batch.log_probs) - 1.0).abs() * batch.mask).max()
        actions, responses = batch.mask.sum(), batch.mask.new_tensor(len(batch.mask))
        return torch.stack([entropy, clipped, moved, kl, actions, responses]), ratio_error


def mean_over_groups(groups: list[Scalars]) -> Scalars:
    """Mean over groups of micro-batches, tag by tag; what is the same in all of them is left as it is."""
    columns = {tag: [scalars[tag] for scalars in groups] for tag in groups[0]}
    return {tag: v[0] if min(v) == max(v) else sum(v) / len(v) for tag, v in columns.items()}


def counted_units(batches: list[Experience], losses: list[str], per_response: bool = False) -> torch.Tensor:
    """Actions, or responses, of all ranks that count in each loss, and in any: [m + 1] float32."""
    return all_reduce_sum(sum(batch.units(losses, per_response).flatten(1).sum(dim=1) for batch in batches))


def count_units(batches: list[Experience], losses: list[str]) -> torch.Tensor:
    """Actions of all ranks that count in each loss, and in any: [m + 1]; 1 at least, so that a mean of none is 0."""
    return counted_units(batches, losses).clamp(min=1)


def optimizer_step(
    actor_update: ActorUpdate,
    critics: list[Critic],
    batches: StepBatches,
    on_policy: bool,
    args: argparse.Namespace,
) -> tuple[Scalars, str | None]:
    """One step of the policy and of every critic; or of none, where something is not finite on some rank.

    All gradients are there before the first step: memory for the critics' beside the policy's is the price.

    Returns:
        Metrics, empty when there was no step; what was not finite, if anything.
    """
    weigher = actor_update.weigher
    state = copy.deepcopy(weigher.state_dict())
    scalars = actor_update.accumulate(batches, on_policy)
    if scalars is None:
        weigher.go_back(state)
        return {}, weigher.not_finite
    engines = {POLICY_GRADIENT: actor_update.actor.engine}
    for critic in critics:
        scalars |= accumulate_critic_gradient(critic, batches.all, args)
        engines[f"the gradient of the critic of {', '.join(critic.names)}"] = critic.engine
    norms, not_finite = step_if_finite(engines)
    if not_finite:
        weigher.go_back(state)
        return {}, not_finite
    if on_policy:
        scalars |= {f"first_minibatch/{tag}": scalars[tag] for tag in ("approximate_kl", "ratio_error")}
    return scalars | {"gradient/step_norm": norms[POLICY_GRADIENT]}, None


def accumulate_critic_gradient(critic: Critic, batches: list[Experience], args: argparse.Namespace) -> Scalars:
    """Leave the gradient of one optimizer step on this rank's micro-batches in a critic's engine.

    Returns:
        Its losses, one an objective.
    """
    actions = count_units(batches, critic.names)
    totals = torch.zeros(len(critic.names), device=batches[0].mask.device)
    for batch in batches:
        inputs = batch.input_ids, batch.attention_mask, batch.mask.shape[1]
        kept = batch.graphs and batch.graphs.values.pop(critic.names[0])
        values = values_before_actions(critic, *inputs) if kept is None else kept
        units = batch.units(critic.names)
        losses = torch.stack(
            [
                ppo.clipped_value_loss(
                    values[..., head],
                    batch.values[name],
                    batch.returns[name],
                    units[head],
                    args.clip_range_value,
                    actions[head],
                )
                for head, name in enumerate(critic.names)
            ]
        )
        critic.engine.set_gradient_accumulation_boundary(batch is batches[-1])
        critic.engine.backward(losses.sum() * world_size(), scale_wrt_gas=False)
        totals += losses.detach()
    return {f"loss/critic/{n}": v for n, v in zip(critic.names, all_reduce_sum(totals).tolist(), strict=True)}
