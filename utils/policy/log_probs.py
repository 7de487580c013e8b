"""Responses and their log-probabilities as pure functions on tensors.

Shapes: batch x time, where time runs over response positions only. A mask is 1.0 where an action was taken (the
response up to and including EOS) and 0.0 on padding.
"""

from collections.abc import Iterator, Sequence

import torch


def response_mask(response_ids: torch.Tensor, eos_token_id: int | Sequence[int]) -> torch.Tensor:
    """Action mask of sampled responses, from their lengths: everything up to and including the first EOS.

    Comparing ids with the pad token would be wrong when a policy samples the pad token, or when pad is EOS.

    Args:
        response_ids: [batch, time] int64.
        eos_token_id: the id, or all ids, that end a response.

    Returns:
        [batch, time] float32 of zeros and ones.
    """
    is_eos = ends_response(response_ids, eos_token_id).int()
    eos_before = is_eos.cumsum(dim=-1) - is_eos  # [batch, time] EOS tokens strictly before each position
    return (eos_before == 0).float()


def finished(response_ids: torch.Tensor, mask: torch.Tensor, eos_token_id: int | Sequence[int]) -> torch.Tensor:
    """1 where a response ended by itself, with EOS: [batch, time] ids and action mask -> [batch] float32."""
    return (ends_response(response_ids, eos_token_id) & (mask > 0)).any(dim=-1).float()


def ends_response(ids: torch.Tensor, eos_token_id: int | Sequence[int]) -> torch.Tensor:
    """Where ids are one of those that end a response; bool, in their shape."""
    return torch.isin(ids, torch.as_tensor(eos_token_id, device=ids.device))


def log_probs_of(logits: torch.Tensor, actions: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities, under the sampled distribution, of the actions taken.

    No float32 copy of the logits is kept: they are read in chunks, and once more on the way back.

    Args:
        logits: [batch, time, vocabulary], any float dtype; position t predicts `actions[:, t]`.
        actions: [batch, time] int64.

    Returns:
        [batch, time] float32.
    """
    return _LogProbs.apply(logits, actions, temperature, False)[0]


def log_probs_and_entropy(
    logits: torch.Tensor, actions: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_probs_of`, and from the same softmax the entropy in nats; [batch, time] float32 each.

    The entropy has no gradient.
    """
    return _LogProbs.apply(logits, actions, temperature, True)


class _LogProbs(torch.autograd.Function):
    """log softmax(z / T)_a, whose derivative is (e_a - softmax(z / T)) / T, and the entropy; zeros unless wanted."""

    @staticmethod
    def forward(
        ctx, logits: torch.Tensor, actions: torch.Tensor, temperature: float, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(logits, actions)
        ctx.temperature = temperature
        log_probs, entropy = (torch.zeros(actions.shape, device=logits.device) for _ in range(2))
        for at in token_chunks(logits):
            distribution = (logits[at].float() / temperature).log_softmax(dim=-1)
            log_probs[at] = distribution.gather(-1, actions[at].unsqueeze(-1)).squeeze(-1)
            if with_entropy:
                entropy[at] = entropy_of(distribution)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx, slopes: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, actions = ctx.saved_tensors
        slopes = slopes.unsqueeze(-1) / ctx.temperature  # [batch, time, 1]
        gradient = torch.empty_like(logits)
        for at in token_chunks(logits):
            residual = (logits[at].float() / ctx.temperature).softmax(dim=-1).mul_(-slopes[at])
            gradient[at] = residual.scatter_add_(-1, actions[at].unsqueeze(-1), slopes[at])
        return gradient, None, None, None


def entropy_of(distribution: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of log-probabilities: [..., vocabulary] -> [...]."""
    return -distribution.exp().mul_(distribution).sum(dim=-1)


def token_chunks(logits: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Indices of pieces of [batch, time, vocabulary] logits, each of 4 MB in float32 on CPU and 64 MB on GPU.

    On CPU this is several times faster than one large piece: its memory is returned and mapped again at every call.
    """
    batch, time, vocabulary = logits.shape
    tokens = max(1, (2**24 if logits.is_cuda else 2**20) // vocabulary)
    rows, columns = max(1, tokens // time), min(time, tokens)
    for row in range(0, batch, rows):
        for column in range(0, time, columns):
            yield slice(row, row + rows), slice(column, column + columns)
