"""From pairs to one optimizer step: every objective's loss, their gradients compared, and one update."""

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from step3_dpo.batches import MeasuredBatch, collate, measured
from step3_dpo.losses import (
    log_prob_differences,
    modpo_logits,
    pair_figures,
    pair_logits,
    preference_losses,
)
from step3_dpo.policy import PairPolicy
from utils.combining.algorithm import Algorithm, LossLevel
from utils.combining.weighing import Scalars, Weigher
from utils.data.encoding import Encoded
from utils.engines.passes import Passes
from utils.gradients.step import ObjectiveStep, loss_slopes
from utils.gradients.zero import step_if_finite
from utils.policy.forward import PolicyOutput
from utils.process.distributed import all_reduce_sum, device

POLICY_GRADIENT = "the gradient of the policy"
FIGURES = ("loss", "accuracy", "margin")  # of `pair_figures`


@dataclass(frozen=True)
class PairLosses:
    """The losses of pairs, of all objectives, and which of them are optimized.

    Attributes:
        names: [m] all objectives.
        beta: [m] float64.
        scale: [m] float64, factors on the losses.
        optimized: those that are, by their numbers.
        logit_scale: 1 / w_k of MODPO, else 1; like margins, of what is optimized.
    """

    names: Sequence[str]
    beta: torch.Tensor
    scale: torch.Tensor
    optimized: Sequence[int]
    logit_scale: float = 1.0

    def logits(self, differences: torch.Tensor, batch: MeasuredBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Implicit margins of the policy, and the logits of the losses; [m, b] float64 each.

        Args:
            differences: [b] float64, see `log_prob_differences`.
        """
        margins = pair_logits(differences, batch.reference, self.beta.to(differences), batch.labels)
        logits, own = margins.clone(), list(self.optimized)
        logits[own] = modpo_logits(margins[own], self.logit_scale, batch.margins, batch.labels[own])
        return margins, logits

    def optimized_losses(
        self, log_probs: torch.Tensor, batch: MeasuredBatch, totals: torch.Tensor
    ) -> list[torch.Tensor]:
        """Parts of the means over each optimized objective's pairs in a step; scalars.

        Args:
            log_probs: [2b, t].
            totals: [m] labelled pairs of the step, 1 at least.
        """
        _, logits = self.logits(log_prob_differences(log_probs, batch.mask), batch)
        losses = self.scale.to(logits) * preference_losses(logits, batch.labels, totals)
        return [losses[i] for i in self.optimized]

    def each(self, differences: torch.Tensor, batch: MeasuredBatch) -> torch.Tensor:
        """[m, b, 4] of a batch; see `pair_figures`."""
        margins, logits = self.logits(differences, batch)
        return pair_figures(logits, margins, batch.labels)

    def named(self, sums: torch.Tensor, prefix: str = "") -> Scalars:
        """Means of sums [m, 4], of objectives that have pairs."""
        found = {}
        for name, (*values, count) in zip(self.names, sums.tolist(), strict=True):
            if count:
                found |= {f"{prefix}{what}/{name}": v / count for what, v in zip(FIGURES, values, strict=True)}
        return found


class PairUpdate:
    """Takes optimizer steps. Every loss is a mean over its own pairs in the step's whole batch, over micro-batches and
    ranks."""

    def __init__(
        self, policy: PairPolicy, algorithm: Algorithm, losses: PairLosses, compares: bool, args: argparse.Namespace
    ):
        self.policy, self.losses, self.args = policy, losses, args
        self.weigher = Weigher(algorithm, algorithm.losses, compares, args.gram_every or 1)

    def step(self, micro_batches: list[list[Encoded]]) -> tuple[Scalars, str | None]:
        """One optimizer step on this rank's micro-batches, or none where something is not finite on some rank.

        Returns:
            Metrics, empty when there was no step; what was not finite, if anything.
        """
        start, passes, engine = time.monotonic(), Passes(), self.policy.engine
        state = copy.deepcopy(self.weigher.state_dict())
        learning_rate = engine.get_lr()[0]
        batches = [measured(collate(examples, self.policy.pad_id), self.policy.reference) for examples in micro_batches]
        scalars = self.accumulate(batches)
        if scalars is None:
            self.weigher.go_back(state)
            return {}, self.weigher.not_finite
        norms, not_finite = step_if_finite({POLICY_GRADIENT: engine})
        if not_finite:
            self.weigher.go_back(state)
            return {}, not_finite
        scalars |= {"gradient/step_norm": norms[POLICY_GRADIENT], "learning_rate": learning_rate}
        scalars |= self.weigher.algorithm.scalars()
        return scalars | passes.scalars() | {"time/step": time.monotonic() - start}, None

    def accumulate(self, batches: list[MeasuredBatch]) -> Scalars | None:
        """Leave the gradient of an optimizer step in the engine; its metrics.

        Returns:
            None when what the gradients are compared by was not finite.
        """
        losses, counts = self.losses, count_labels(batches)
        totals = counts.clamp(min=1)  # so that a mean of none is 0
        present = [counts[i].item() > 0 for i in losses.optimized]
        scope = self.args.gradient_scope if self.weigher.compares_now else None
        step = ObjectiveStep(self.policy, scope, len(losses.optimized), temperature=1.0)
        outputs: list[PolicyOutput | None] = [None] * len(batches)
        parts = None
        if scope:
            again = scope == "last_layer" and len(batches) > 1  # their coefficients are known after all have been read
            parts = torch.zeros(len(losses.optimized), dtype=torch.float64, device=device())
            for number, batch in enumerate(batches):
                output = step.forward(batch, graph=not again)
                values, slopes = loss_slopes(lambda p, b=batch: losses.optimized_losses(p, b, totals), output.log_probs)
                step.compare(batch, output, slopes)
                parts += values
                outputs[number] = None if again else output
        coefficients, scalars = self.weigher.weigh(step.gram(), parts, POLICY_GRADIENT, present)
        if scalars is None:
            step.forget()
            return None
        weights, combined, sums = coefficients.tolist(), [], []
        for number, batch in enumerate(batches):
            output = outputs[number] or step.forward(batch)
            loss = lambda p, b=batch: [
                sum(c * part for c, part in zip(weights, losses.optimized_losses(p, b, totals), strict=True))
            ]
            value, slope = loss_slopes(loss, output.log_probs)
            step.descend(output, slope[0], compared=bool(scope), boundary=batch is batches[-1])
            combined.append(value[0])
            sums.append(losses.each(log_prob_differences(output.log_probs.detach(), batch.mask), batch).sum(dim=1))
            output = outputs[number] = None  # its graph and logits, before another pass makes them
        step.finish(coefficients, torch.ones(len(losses.optimized)))
        self.weigher.took_step(compared=bool(scope))
        means = all_reduce_sum(sum(sums)).cpu()
        if isinstance(self.weigher.algorithm, LossLevel):
            found = means[list(losses.optimized), 0] / totals.cpu()[list(losses.optimized)]
            self.weigher.algorithm.observe_losses(found, present)
        return {"combined_loss": all_reduce_sum(sum(combined)).item()} | losses.named(means) | scalars


def count_labels(batches: Sequence[MeasuredBatch]) -> torch.Tensor:
    """Pairs of a step, on all ranks, that each objective has labelled; [m] float64."""
    return all_reduce_sum(sum(batch.labels.abs().sum(dim=-1) for batch in batches))
