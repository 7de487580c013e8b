"""From losses to one gradient by their slopes: which losses that holds for, and where it stops holding."""

import torch

from utils.gradients.step import loss_slopes


def policy(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [rows, time] of actions and the logits behind them, of a policy with these parameters."""
    torch.manual_seed(0)
    states, actions = torch.randn(3, 4, 5), torch.randint(0, 6, (3, 4))
    logits = states @ parameter
    return logits.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1), logits


def by_slopes(losses, parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of each loss, as `ObjectiveStep` makes it."""
    log_probs, _ = policy(parameter)
    _, slopes = loss_slopes(losses, log_probs)
    return torch.stack([torch.autograd.grad((s * log_probs).sum(), parameter, retain_graph=True)[0] for s in slopes])


def test_losses_of_log_probabilities_have_the_gradients_of_their_slopes() -> None:
    parameter = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    old, advantages = policy(parameter)[0].detach() + 0.2, torch.randn(3, 4)
    surrogate = lambda values: -torch.minimum((values - old).exp() * advantages,
                                              (values - old).exp().clamp(0.9, 1.1) * advantages).mean()  # fmt: skip
    k3 = lambda values: ((old - values).exp() - (old - values) - 1).mean()  # a KL estimate in the loss
    pairs = lambda values: -torch.nn.functional.logsigmoid(values.sum(dim=-1)[0] - values.sum(dim=-1)[1])
    losses = [surrogate, k3, pairs]
    found = by_slopes(lambda values: [loss(values) for loss in losses], parameter)
    for loss, gradient in zip(losses, found, strict=True):
        expected = torch.autograd.grad(loss(policy(parameter)[0]), parameter)[0]
        torch.testing.assert_close(gradient, expected)


def test_a_loss_that_reads_the_logits_would_lose_a_part_of_its_gradient() -> None:
    """An entropy bonus reaches the parameters past the log-probabilities of the actions: slopes do not see it."""
    parameter = torch.randn(5, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    _, logits = policy(parameter)
    entropy = -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    (found,) = by_slopes(lambda values: [-values.mean() - entropy.detach()], parameter)
    whole = torch.autograd.grad(-policy(parameter)[0].mean() - entropy, parameter)[0]
    assert (found - whole).abs().max() > 0.01 * whole.abs().max()


def test_slopes_are_of_the_point_where_they_are_taken() -> None:
    log_probs = torch.tensor([[0.5, -1.0]], requires_grad=True)
    losses, slopes = loss_slopes(lambda values: [values.square().sum(), (3 * values).sum()], log_probs)
    assert losses.tolist() == [1.25, -1.5] and slopes.tolist() == [[[1.0, -2.0]], [[3.0, 3.0]]]
    assert not losses.requires_grad and not slopes.requires_grad and log_probs.grad is None
