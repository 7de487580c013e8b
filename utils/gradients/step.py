"""From m losses of micro-batches to one gradient in an engine, at either scope, whatever the losses are.

Every loss reaches the parameters through the log-probabilities of the actions alone. Its slopes ∂L_i/∂log π,
[m, rows, time], are therefore all that is asked of it: they serve the Gram matrix and the backward pass of every loss,
and so does the slope of the combined loss, Σ c_i L_i, which is taken where the pass that goes on has left the
log-probabilities. (A loss that read anything else of the policy, its entropy or its logits,
would need another way in: `tests/test_objective_step.py` shows where it would go wrong.)

An optimizer step, in turn: `forward` and `compare` for every micro-batch that is compared, `gram`, `descend` for every
micro-batch (after another `forward`, where the first was without a graph), `finish`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from utils.gradients.head import HeadGradients
from utils.gradients.zero import ObjectiveGradients, forget_gradients
from utils.policy.forward import NO_PLAIN_HEAD, PolicyOutput
from utils.policy.trained import TrainedPolicy
from utils.process.distributed import world_size
from utils.process.errors import UserError


class MicroBatch(Protocol):
    """What a forward pass reads: [rows, prompt + time] int64 ids and mask, [rows, time] float32 mask of actions."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor

    @property
    def actions(self) -> torch.Tensor:
        """[rows, time] int64."""


def loss_slopes(
    losses: Callable[[torch.Tensor], Sequence[torch.Tensor]], log_probs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and their slopes ∂L_i/∂log π at `log_probs`.

    Args:
        losses: [rows, time] log-probabilities -> m scalars.
        log_probs: [rows, time] float32; detached here.

    Returns:
        [m] and [m, rows, time], float32.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        values = losses(leaf)
        slopes = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in values]  # parts may be shared
    return torch.stack([loss.detach() for loss in values]), torch.stack(slopes)


class ObjectiveStep:
    """The gradient of one optimizer step.

    Args:
        scope: which gradients are compared: those of the output head ("last_layer"), of all trained parameters
            ("full"), or none (None).
        objectives: m.
        temperature: of the log-probabilities.
        rest: at scope full, whether there are micro-batches that are not compared.
    """

    def __init__(
        self, actor: TrainedPolicy, scope: str | None, objectives: int, temperature: float, rest: bool = False
    ):
        self.actor, self.engine, self.scope = actor, actor.engine, scope
        self.objectives, self.temperature = objectives, temperature
        self.head: HeadGradients | None = None
        # The combined gradient of what is not compared comes after those of the objectives.
        self.full = ObjectiveGradients(actor.engine, objectives + rest) if scope == "full" else None
        self.rest = rest

    def compare(self, batch: MicroBatch, output: PolicyOutput, slopes: torch.Tensor) -> None:
        """Add a micro-batch's part to the gradients that are compared.

        Args:
            slopes: [m, rows, time] of the losses.

        Raises:
            UserError: at scope last_layer, where the derivative of the logits is not that of the output head.
        """
        if self.scope == "full":
            self.compare_full(batch, output, slopes)
        elif self.scope == "last_layer":
            if not self.actor.forward.has_plain_head:
                raise UserError(NO_PLAIN_HEAD)
            self.head = self.head or HeadGradients(self.actor, self.objectives, self.temperature)
            self.head.add(output.hidden, output.logits, batch.actions, slopes)

    def compare_full(self, batch: MicroBatch, output: PolicyOutput, slopes: torch.Tensor) -> None:
        """A backward pass a loss. Under ZeRO-3, which releases the parameters with the first one, each of a forward
        pass of its own."""
        once, log_probs = self.engine.zero_optimization_stage() < 3, output.log_probs
        # Graph, logits and head input go with the first backward pass that needs them.
        output.log_probs, output.hidden, output.logits = log_probs.detach(), None, None
        for i, slope in enumerate(slopes):
            if i > 0 and not once:
                del log_probs
                log_probs = self.forward(batch).log_probs
            forget_gradients(self.engine)
            self.backward(log_probs, slope, boundary=True, retain_graph=once and i + 1 < len(slopes))
            self.full.add(i)

    def gram(self) -> torch.Tensor | None:
        """Gram matrix [m, m] float64 on the host, over all ranks, of what was compared since the last one."""
        if self.scope == "full":
            if self.rest:
                self.forget()  # of the last loss; the combined one comes in its place
            return self.full.gram(self.objectives)
        if self.head is None:
            return None
        gradients, self.head = self.head, None
        return gradients.gram()

    def descend(self, output: PolicyOutput, slope: torch.Tensor, compared: bool, boundary: bool) -> None:
        """Backward pass of a micro-batch's combined loss; at scope full there was one a loss for what is compared.

        Args:
            output: of a pass with its graph.
            slope: [rows, time] of the combined loss.
            boundary: whether it is the step's last.
        """
        if not (self.scope == "full" and compared):
            self.backward(output.log_probs, slope, boundary)

    def finish(self, coefficients: torch.Tensor, share: torch.Tensor) -> None:
        """Leave the gradient of the combined loss in the engine.

        Args:
            coefficients: [m] of the losses.
            share: [m] of the units of each loss that were compared; 1 where that is all.
        """
        if self.scope != "full":
            return
        coefficients = coefficients * share.to(coefficients)
        if self.rest:
            self.full.add(self.objectives)
            coefficients = torch.cat([coefficients, coefficients.new_ones(1)])
        self.full.combine(coefficients)

    def forget(self) -> None:
        """Leave no gradient in the engine."""
        forget_gradients(self.engine)

    def forward(self, batch: MicroBatch, graph: bool = True) -> PolicyOutput:
        """A pass of the policy, with its graph where a backward pass follows."""
        with torch.set_grad_enabled(graph):
            return self.actor.forward(batch.input_ids, batch.attention_mask, batch.mask.shape[1])

    def backward(
        self, log_probs: torch.Tensor, slope: torch.Tensor, boundary: bool, retain_graph: bool = False
    ) -> None:
        """Backward pass of the loss with this slope, a part of a mean over the whole step; at a `boundary` DeepSpeed
        makes the gradient of all parts. It averages over the ranks, whose parts add up."""
        self.engine.set_gradient_accumulation_boundary(boundary)
        loss = (slope * log_probs).sum() * world_size()
        self.engine.backward(loss, retain_graph=retain_graph, scale_wrt_gas=False)
