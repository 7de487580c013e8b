"""What single tricks bring, on one rank."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch

from step3_gapo.experience import Experience
from step3_gapo.ppo import generalized_advantage_estimate
from tests.benchmarks.measure import ratio_of, time_in_turns
from tests.benchmarks.section import Job, Row, Section, Settings, in_order
from tests.benchmarks.step import FLAGS
from tests.benchmarks.synthetic import (
    SIZES,
    Load,
    arguments_of,
    make_actor,
    make_decoder,
    make_experience,
    make_update,
)
from tests.updates import policy_step
from utils.gradients.head import head_residual
from utils.gradients.step import ObjectiveStep
from utils.gradients.zero import shard_gram
from utils.models.configs import DTYPES
from utils.policy.forward import ChunkedLogProbs, PolicyOutput, scaled_logits
from utils.policy.log_probs import log_probs_and_entropy, log_probs_of, token_chunks
from utils.process.distributed import device, seed_everything

TEMPERATURE = 0.8
LOGITS = ((32, 96, 768), (4, 96, 32000))  # [batch, time, vocabulary]
OBJECTIVES = 4


def row_of(piece: str, plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> Row:
    seconds = time_in_turns({"plain": plain, "ours": ours}, rounds)
    return {
        "piece": piece,
        "plain / ours": ratio_of(seconds["plain"], seconds["ours"]),
        "ours [ms]": round(1e3 * seconds["ours"].median().item(), 2),
    }


# --- log-probabilities of the actions


def plain_log_probs(logits: torch.Tensor, actions: torch.Tensor, temperature: float) -> torch.Tensor:
    """[batch, time, vocabulary], [batch, time] -> [batch, time] float32."""
    return (logits.float() / temperature).log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def log_probs_row(shape: tuple[int, int, int], dtype: str, rounds: int) -> Row:
    seed_everything(0)
    logits = torch.randn(shape, dtype=DTYPES[dtype], device=device()).requires_grad_()
    actions = torch.randint(shape[-1], shape[:2], device=device())

    def there_and_back(log_probs: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(log_probs(logits, actions, TEMPERATURE).sum(), logits)

    piece = f"log-probabilities in chunks, vocabulary {shape[-1]:,}: forward and backward"
    return row_of(piece, lambda: there_and_back(plain_log_probs), lambda: there_and_back(log_probs_of), rounds)


def head_row(features: int, dtype: str, rounds: int, chunk_size: int = 512) -> Row:
    """The output head in chunks: never all logits, for one product with the head more."""
    batch, time, vocabulary = LOGITS[-1]
    seed_everything(0)
    hidden = torch.randn(batch, time, features, dtype=DTYPES[dtype], device=device()).requires_grad_()
    weight = torch.randn(vocabulary, features, dtype=DTYPES[dtype], device=device()).div_(features**0.5)
    weight.requires_grad_()
    actions = torch.randint(vocabulary, (batch, time), device=device())

    def whole() -> None:
        torch.autograd.grad(log_probs_of(hidden @ weight.T, actions, TEMPERATURE).sum(), (hidden, weight))

    def in_chunks() -> None:
        log_probs, _ = ChunkedLogProbs.apply(hidden, weight, None, actions, TEMPERATURE, chunk_size, False)
        torch.autograd.grad(log_probs.sum(), (hidden, weight))

    piece = f"output head in chunks of {chunk_size} tokens, {features} features (for memory): forward and backward"
    return row_of(piece, whole, in_chunks, rounds)


def entropy_row(shape: tuple[int, int, int], dtype: str, rounds: int) -> Row:
    """Log-probabilities and entropy from one softmax, and from one each."""
    seed_everything(0)
    logits = torch.randn(shape, dtype=DTYPES[dtype], device=device())
    actions = torch.randint(shape[-1], shape[:2], device=device())

    def apart() -> tuple[torch.Tensor, torch.Tensor]:
        return log_probs_of(logits, actions, TEMPERATURE), plain_entropy(logits, TEMPERATURE)

    def together() -> tuple[torch.Tensor, torch.Tensor]:
        return log_probs_and_entropy(logits, actions, TEMPERATURE)

    assert all(map(torch.equal, apart(), together()))
    return row_of(f"log-probabilities and entropy from one softmax, vocabulary {shape[-1]:,}", apart, together, rounds)


def plain_entropy(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """[batch, time, vocabulary] -> [batch, time] float32, in the chunks of `log_probs_of`."""
    entropy = torch.empty(logits.shape[:2], device=logits.device)
    for at in token_chunks(logits):
        log_probs = (logits[at].float() / temperature).log_softmax(dim=-1)
        entropy[at] = -(log_probs.exp() * log_probs).sum(dim=-1)
    return entropy


def scaled_logits_row(features: int, dtype: str, rounds: int) -> Row:
    """Logits of a chunk divided by the temperature where they lie, and in a copy."""
    tokens, vocabulary = 512, LOGITS[-1][-1]
    seed_everything(0)
    hidden = torch.randn(tokens, features, dtype=DTYPES[dtype], device=device())
    weight = torch.randn(vocabulary, features, dtype=DTYPES[dtype], device=device()).div_(features**0.5)

    def in_a_copy() -> torch.Tensor:
        return (hidden @ weight.T).float() / TEMPERATURE

    def in_place() -> torch.Tensor:
        return scaled_logits(hidden, weight, None, TEMPERATURE)

    assert torch.equal(in_a_copy(), in_place())
    return row_of(f"logits of a chunk scaled in place, {features} features", in_a_copy, in_place, rounds)


def residual_row(dtype: str, rounds: int) -> Row:
    """What the last layer's gradients are products with, its sign changed in place and in a copy."""
    tokens, vocabulary = 1024, LOGITS[-1][-1]
    seed_everything(0)
    logits = torch.randn(tokens, vocabulary, dtype=DTYPES[dtype], device=device())
    actions = torch.randint(vocabulary, (tokens,), device=device())

    def in_a_copy() -> torch.Tensor:
        residual = -(logits.float() / TEMPERATURE).softmax(dim=-1)
        return residual.scatter_add_(-1, actions.unsqueeze(-1), torch.ones_like(residual[:, :1]))

    def in_place() -> torch.Tensor:
        return head_residual(logits, actions, TEMPERATURE)

    assert torch.equal(in_a_copy(), in_place())
    return row_of(
        f"residuals of the head, sign changed in place, vocabulary {vocabulary:,}", in_a_copy, in_place, rounds
    )


# --- advantages


def plain_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`generalized_advantage_estimate` with all of it step by step; [batch, time] each."""
    values, rewards = values * mask, rewards * mask
    advantage = next_value = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, (advantages + values) * mask


def advantages_row(load: Load, rounds: int) -> Row:
    seed_everything(0)
    rewards, values = torch.randn(2, load.batch, load.response, device=device())
    lengths = torch.randint(load.response // 2, load.response + 1, (load.batch, 1), device=device())
    mask = (torch.arange(load.response, device=device()) < lengths).float()
    arguments = rewards, values, mask, 0.99, 0.95
    assert all(map(torch.equal, plain_advantages(*arguments), generalized_advantage_estimate(*arguments)))
    return row_of(
        f"advantages, {load.batch} responses of up to {load.response} tokens",
        lambda: plain_advantages(*arguments),
        lambda: generalized_advantage_estimate(*arguments),
        rounds,
    )


# --- one forward pass for all objectives


class RepeatedForward(ObjectiveStep):
    """Scope `full`, with a forward pass more for every objective but the first."""

    def compare_full(self, batch: Experience, output: PolicyOutput, slopes: torch.Tensor) -> None:
        super().compare_full(batch, output, slopes)
        for _ in slopes[1:]:
            self.forward(batch)


def forward_row(load: Load, rounds: int) -> Row:
    args = arguments_of(load, ranks=1, zero_stage=2)
    actor = make_actor(load, args)
    experience = make_experience(actor, load, args, OBJECTIVES)
    update = make_update(actor, args, OBJECTIVES, **FLAGS["full"])

    def plain() -> None:
        with mock.patch("step3_gapo.update.ObjectiveStep", RepeatedForward):
            policy_step(update, experience)

    piece = f"full: one forward pass for {OBJECTIVES} objectives"
    return row_of(piece, plain, lambda: policy_step(update, experience), rounds)


# --- the Gram matrix


def gram_by_parameter(gradients: list[torch.Tensor]) -> torch.Tensor:
    """m(m + 1)/2 dot products a parameter.

    Args:
        gradients: [m, size] float32, one a parameter.

    Returns:
        [m, m] float64.
    """
    objectives = len(gradients[0])
    gram = torch.zeros(objectives, objectives, dtype=torch.float64, device=gradients[0].device)
    for gradient in gradients:
        for i in range(objectives):
            for j in range(i + 1):
                gram[i, j] += gradient[i].dot(gradient[j])
    return gram + gram.tril(-1).T


def gram_row(load: Load, rounds: int) -> Row:
    sizes = [parameter.numel() for parameter in make_decoder(load).parameters()]
    shards = torch.randn(OBJECTIVES, sum(sizes), device=device())
    by_parameter = [part.contiguous() for part in shards.split(sizes, dim=1)]
    torch.testing.assert_close(shard_gram(shards), gram_by_parameter(by_parameter), rtol=1e-4, atol=1.0)
    piece = f"Gram matrix in chunks of shards: m = {OBJECTIVES}, {SIZES[load.size].parameters:,} parameters"
    return row_of(piece, lambda: gram_by_parameter(by_parameter), lambda: shard_gram(shards), rounds)


def piece_rows(load: Load, memory_size: str, rounds: int) -> list[Row]:
    return [
        *(log_probs_row(shape, load.dtype, rounds) for shape in LOGITS),
        *(entropy_row(shape, load.dtype, rounds) for shape in LOGITS),
        head_row(SIZES[load.size].hidden, load.dtype, rounds),
        scaled_logits_row(SIZES[load.size].hidden, load.dtype, rounds),
        residual_row(load.dtype, rounds),
        advantages_row(load, rounds),
        forward_row(load, rounds),
        *(gram_row(replace(load, size=size), rounds) for size in dict.fromkeys([load.size, memory_size])),
    ]


def jobs(settings: Settings) -> list[Job]:
    load = replace(settings.load, batch=max(1, settings.load.batch // 2))
    arguments = load, settings.memory_size, settings.rounds
    return [Job("one rank", piece_rows, arguments, ranks=1, weight=25)]


SECTION = Section(
    title="Time of the plain way, over that of ours",
    note="One rank, everything else alike.",
    jobs=jobs,
    rows=in_order,
)
