"""Last-layer gradients of every objective against autograd, and their Gram matrix over ranks."""

from dataclasses import dataclass

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from step3_gapo import ppo
from tests.helpers import run_function
from utils.gradients.head import add_head_gradients, global_gram
from utils.gradients.step import loss_slopes
from utils.policy.forward import response_logits
from utils.policy.log_probs import log_probs_of
from utils.process.distributed import init_distributed, rank, shutdown_distributed

VOCABULARY, FEATURES, OBJECTIVES, CLIP = 50, 16, 3, 0.1
LENGTHS = (6, 1, 4, 3, 6, 2)  # actions of each response


@dataclass
class Case:
    """A policy that has moved away from the one that sampled, and m surrogate losses."""

    model: MistralForCausalLM
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    temperature: float

    @property
    def actions(self) -> torch.Tensor:
        return self.input_ids[:, -self.mask.shape[1] :]

    def losses(self, log_probs: torch.Tensor, rows: slice = slice(None)) -> list[torch.Tensor]:
        old, advantages, mask = self.old_log_probs[rows], self.advantages[:, rows], self.mask[rows]
        return [ppo.clipped_surrogate_loss(log_probs, old, a, mask, CLIP, self.mask.sum()) for a in advantages]

    def gradients(self, rows: slice = slice(None), **options: int) -> torch.Tensor:
        """What the project computes, from the head's input and output."""
        inputs = []
        hook = self.model.lm_head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        with torch.no_grad():
            length = self.mask.shape[1]
            logits = response_logits(self.model, self.input_ids[rows], self.attention_mask[rows], length)
        hook.remove()
        log_probs = log_probs_of(logits, self.actions[rows], self.temperature)
        _, slopes = loss_slopes(lambda values: self.losses(values, rows), log_probs)
        hidden = inputs[0][:, -length - 1 : -1]
        return head_gradients(logits, hidden, self.actions[rows], slopes, self.temperature, **options)

    def autograd_gradients(self) -> torch.Tensor:
        """The same by differentiating every loss through the whole model."""
        logits = response_logits(self.model, self.input_ids, self.attention_mask, self.mask.shape[1])
        losses = self.losses(log_probs_of(logits, self.actions, self.temperature))
        weight = self.model.lm_head.weight
        return torch.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses])


def head_gradients(logits, hidden, actions, slopes, temperature: float, **options: int) -> torch.Tensor:
    """[m, vocabulary · features]."""
    total = torch.zeros(logits.shape[-1], len(slopes), hidden.shape[-1])
    add_head_gradients(total, lambda *at: logits[at], hidden, actions, slopes, temperature, **options)
    return total.transpose(0, 1).flatten(1)


def gram_of(gradients: torch.Tensor) -> torch.Tensor:
    """`global_gram` of [m, vocabulary · features]."""
    return global_gram(gradients.view(len(gradients), VOCABULARY, FEATURES).transpose(0, 1).contiguous())


def make_case(temperature: float = 1.0) -> Case:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=VOCABULARY, hidden_size=FEATURES, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=False,
    )).eval()  # fmt: skip
    rows, prompt, time = len(LENGTHS), 5, max(LENGTHS)
    mask = torch.tensor([[1.0] * n + [0.0] * (time - n) for n in LENGTHS])
    prompt_mask = torch.tensor([[0] * (row % 3) + [1] * (prompt - row % 3) for row in range(rows)])
    case = Case(
        model,
        input_ids=torch.randint(VOCABULARY, (rows, prompt + time)),
        attention_mask=torch.cat([prompt_mask, mask.long()], dim=1),
        mask=mask,
        old_log_probs=torch.empty(rows, time),
        advantages=torch.randn(OBJECTIVES, rows, time),
        temperature=temperature,
    )
    with torch.no_grad():
        logits = response_logits(model, case.input_ids, case.attention_mask, time)
        # Ratios on either side of the clip range: some slopes are 0, some are not.
        case.old_log_probs = log_probs_of(logits, case.actions, temperature) + 0.1 * torch.randn(rows, time)
    return case


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_as_autograd_has_them(temperature: float) -> None:
    case = make_case(temperature)
    expected, actual = case.autograd_gradients(), case.gradients()
    assert actual.shape == (OBJECTIVES, VOCABULARY * FEATURES)
    for i in range(OBJECTIVES):
        assert (actual[i] - expected[i]).norm() <= 1e-5 * expected[i].norm()
    torch.testing.assert_close(gram_of(actual), (expected @ expected.T).double(), rtol=1e-5, atol=0)


def test_some_tokens_are_clipped_and_some_are_not() -> None:
    """Else the comparison with autograd would say little."""
    case = make_case()
    with torch.no_grad():
        logits = response_logits(case.model, case.input_ids, case.attention_mask, case.mask.shape[1])
        log_probs = log_probs_of(logits, case.actions)
    _, slopes = loss_slopes(case.losses, log_probs)
    zero = slopes[:, case.mask > 0].eq(0).float().mean()
    assert 0.1 < zero < 0.9


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 7, 22, 1000])
def test_the_chunk_size_does_not_matter(chunk_size: int) -> None:
    case = make_case()
    torch.testing.assert_close(case.gradients(chunk_size=chunk_size), case.gradients(), rtol=1e-5, atol=1e-8)


def test_slopes_are_those_of_each_loss_and_zero_on_padding() -> None:
    case = make_case()
    log_probs = case.old_log_probs.clone()  # on-policy: ∂L_i/∂log π = -A_i / actions
    expected = -case.advantages * case.mask / case.mask.sum()
    torch.testing.assert_close(loss_slopes(case.losses, log_probs)[1], expected)


def test_padding_has_no_part() -> None:
    case = make_case()
    expected = case.gradients()
    padding = torch.cat([torch.zeros(len(LENGTHS), 5), 1 - case.mask], dim=1).bool()
    case.input_ids[padding] = 1
    case.advantages[:, case.mask == 0] = 1e6
    torch.testing.assert_close(case.gradients(), expected, rtol=1e-5, atol=1e-8)


def test_no_action_at_all_gives_zero() -> None:
    logits, hidden, actions = torch.randn(2, 3, 7), torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    assert head_gradients(logits, hidden, actions, torch.zeros(2, 2, 3), 1.0).tolist() == [[0.0] * 28] * 2


def test_bf16_models_have_float32_gradients() -> None:
    case = make_case()
    expected = case.autograd_gradients()
    case.model.bfloat16()
    actual = case.gradients()
    assert actual.dtype == torch.float32
    assert (torch.cosine_similarity(actual, expected, dim=1) > 0.9).all()


def check_gram_over_ranks(ranks: int) -> None:
    """On every rank: the Gram matrix of the summed gradients, not the sum or mean of Gram matrices."""
    init_distributed()
    case = make_case()
    own = case.gradients(slice(rank(), None, ranks))
    expected = case.autograd_gradients()
    expected = (expected @ expected.T).double()
    per_rank = (own @ own.T).double()
    torch.testing.assert_close(gram_of(own), expected, rtol=1e-5, atol=1e-9)
    torch.distributed.all_reduce(per_rank)
    assert (per_rank - expected).abs().max() > 0.02 * expected.abs().max()
    assert (per_rank / ranks - expected).abs().max() > 0.02 * expected.abs().max()
    shutdown_distributed()


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_gram_matrix_is_that_of_the_mean_gradient_over_ranks(ranks: int) -> None:
    result = run_function(check_gram_over_ranks, ranks, ranks=ranks)
    assert result.code == 0, result.stderr
