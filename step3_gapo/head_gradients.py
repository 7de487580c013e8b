"""Gradients of the objectives with respect to the policy's last layer, without a backward pass.

Every objective's loss reaches the output head only through the log-probabilities of the actions taken. With
u_t = ∂L/∂log π(a_t) (a number a token), head input h_t and logits z_t at temperature T,

    ∂L/∂W = Σ_t u_t (e_{a_t} - softmax(z_t / T)) / T ⊗ h_t,

so one forward pass serves all objectives, each costs one more product of the head's size, and no parameter is
touched: ZeRO 0-3 and offload are all alike. The paper (section 4) takes its weights from the last layer, too.
"""

from collections.abc import Callable

import torch

from utils.distributed import all_reduce_sum


def surrogate_slopes(losses: Callable[[torch.Tensor], list[torch.Tensor]], log_probs: torch.Tensor) -> torch.Tensor:
    """∂L_i/∂log π of every objective's loss at `log_probs`.

    Args:
        losses: [batch, time] log-probabilities -> m scalars.
        log_probs: [batch, time] float32; detached here.

    Returns:
        [m, batch, time] float32.
    """
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        return torch.stack([torch.autograd.grad(loss, leaf)[0] for loss in losses(leaf)])


@torch.no_grad()
def head_gradients(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    actions: torch.Tensor,
    slopes: torch.Tensor,
    temperature: float,
    chunk_size: int = 2048,
) -> torch.Tensor:
    """This rank's gradients of all objectives with respect to the output head.

    Works through the tokens in chunks: no float32 copy of all logits exists.

    Args:
        logits: [batch, time, vocabulary].
        hidden: [batch, time, features], the head's input.
        actions: [batch, time] int64.
        slopes: [m, batch, time], see `surrogate_slopes`.

    Returns:
        [m, vocabulary · features] float32.
    """
    m, vocabulary, features = len(slopes), logits.shape[-1], hidden.shape[-1]
    used = slopes.ne(0).any(dim=0).flatten()  # padding has slope 0 and is left out
    logits, hidden = logits.flatten(0, 1)[used], hidden.flatten(0, 1)[used]  # [tokens, ...]
    actions, slopes = actions.flatten()[used], slopes.flatten(1)[:, used]  # [tokens], [m, tokens]
    gradients = torch.zeros(vocabulary, m * features, device=logits.device)
    for start in range(0, len(actions), chunk_size):
        chunk = slice(start, start + chunk_size)
        residual = -(logits[chunk].float() / temperature).softmax(dim=-1)  # [chunk, vocabulary]
        residual[torch.arange(len(residual), device=residual.device), actions[chunk]] += 1.0
        weighted = slopes[:, chunk].T.unsqueeze(-1) * hidden[chunk].float().unsqueeze(1)  # [chunk, m, features]
        gradients.addmm_(residual.T, weighted.flatten(1), alpha=1.0 / temperature)
    return gradients.view(vocabulary, m, features).transpose(0, 1).flatten(1)


def global_gram(gradients: torch.Tensor) -> torch.Tensor:
    """Gram matrix of the gradients summed over ranks (not the sum of per-rank Gram matrices).

    Args:
        gradients: [m, n] float32, this rank's part; overwritten by the sum.

    Returns:
        [m, m] float64 on the host.
    """
    gradients = all_reduce_sum(gradients)
    return (gradients @ gradients.T).to("cpu", torch.float64)
