"""Gradients of the objectives with respect to the weights of the policy's last layer, without a backward pass.

Every objective's loss reaches the output head only through the log-probabilities of the actions taken. With
u_t = ∂L/∂log π(a_t) (a number a token), head input h_t and logits z_t at temperature T,

    ∂L/∂W = Σ_t u_t (e_{a_t} - softmax(z_t / T)) / T ⊗ h_t,

so one forward pass serves all objectives, each costs one more product of the head's size, and no parameter is
touched: ZeRO 0-3 and offload are all alike. The paper (section 4) takes its weights from the last layer, too.
"""

from collections.abc import Callable

import torch

from utils.policy.trained import TrainedPolicy
from utils.process.distributed import all_reduce_sum, device


class HeadGradients:
    """Sums, over micro-batches, this rank's gradients of m objectives with respect to the actor's output head."""

    def __init__(self, actor: TrainedPolicy, objectives: int, temperature: float):
        self.actor, self.temperature = actor, temperature
        head = actor.twin.get_output_embeddings()
        # [vocabulary, m, features] float32
        self.total = torch.zeros(head.out_features, objectives, head.in_features, device=device())

    @torch.no_grad()
    def add(
        self,
        hidden: torch.Tensor,
        logits: torch.Tensor | None,
        actions: torch.Tensor,
        slopes: torch.Tensor,
    ) -> None:
        """Add one micro-batch.

        Args:
            hidden: [batch, time, features], the head's input.
            logits: [batch, time, vocabulary], its output; None to compute it here.
            actions: [batch, time] int64.
            slopes: [m, batch, time], see `loss_slopes`.
        """
        if logits is not None:
            add_head_gradients(self.total, lambda *at: logits[at], hidden, actions, slopes, self.temperature)
        else:
            with self.actor.gathered_head() as head:
                add_head_gradients(self.total, lambda *at: head(hidden[at]), hidden, actions, slopes, self.temperature)

    def gram(self) -> torch.Tensor:
        """Gram matrix [m, m] over all ranks, see `global_gram`; uses the gradients up."""
        return global_gram(self.total)


@torch.no_grad()
def add_head_gradients(
    total: torch.Tensor,
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    actions: torch.Tensor,
    slopes: torch.Tensor,
    temperature: float,
    chunk_size: int = 1024,
) -> None:
    """Add this rank's gradients of all objectives with respect to the output head to `total`.

    Works through the tokens in chunks: no float32 copy of all logits exists.

    Args:
        total: [vocabulary, m, features] float32, contiguous.
        logits: rows [k] and positions [k] -> logits of these tokens, [k, vocabulary].
        hidden: [batch, time, features], the head's input.
        actions: [batch, time] int64.
        slopes: [m, batch, time], see `loss_slopes`; tokens without any (padding) are left out.
        chunk_size: tokens of a chunk.
    """
    rows, positions = slopes.ne(0).any(dim=0).nonzero(as_tuple=True)
    for row, position in zip(rows.split(chunk_size), positions.split(chunk_size), strict=True):
        residual = head_residual(logits(row, position), actions[row, position], temperature)
        weighted = slopes[:, row, position].T.unsqueeze(-1) * hidden[row, position].float().unsqueeze(1)
        total.flatten(1).addmm_(residual.T, weighted.flatten(1), alpha=1.0 / temperature)  # [chunk, m · features]


def head_residual(logits: torch.Tensor, actions: torch.Tensor, temperature: float) -> torch.Tensor:
    """e_a - softmax(z / T) of every token: [k, vocabulary] and [k] -> [k, vocabulary] float32."""
    residual = (logits.float() / temperature).softmax(dim=-1).neg_()
    return residual.scatter_add_(-1, actions.unsqueeze(-1), torch.ones_like(residual[:, :1]))


def global_gram(gradients: torch.Tensor) -> torch.Tensor:
    """Gram matrix of the gradients summed over ranks (not the sum of per-rank Gram matrices).

    Args:
        gradients: [vocabulary, m, features] float32, this rank's part; overwritten by the sum.

    Returns:
        [m, m] float64 on the host.
    """
    gradients = all_reduce_sum(gradients)
    return (gradients @ gradients.transpose(1, 2)).sum(dim=0, dtype=torch.float64).cpu()
