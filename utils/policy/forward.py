"""A language model's forward pass over responses: what PPO needs of it, without all logits at once.

Logits are the largest tensor of a step: [tokens, vocabulary], and their gradient once more. Here the output head is
applied to some tokens at a time, on the way forward and again on the way back (one more product with the head), and
only log-probabilities of the actions and entropies leave it. The head still is the model's own module, called where
the model calls it: ZeRO-3's hooks gather its weight for the pass.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedConfig

from utils.engines.engines import Engine
from utils.models.loading import position_ids_from_mask, trunk_of
from utils.models.shared_prompts import SharedPrompts
from utils.policy.log_probs import entropy_of, log_probs_and_entropy, log_probs_of
from utils.process.distributed import print_main
from utils.process.errors import UserError

# What a configuration may say of such models. Others are found by the first pass.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
NO_PLAIN_HEAD = (
    "--gradient_scope last_layer: this model scales or caps the logits after its output head; use --gradient_scope full"
)
PROBE = torch.tensor([1000.0, -1000.0])  # logits that no cap and no factor leaves as they are; exact in bf16


@dataclass
class PolicyOutput:
    """What a forward pass says of the actions taken.

    Attributes:
        log_probs: [batch, time] float32, at the sampling temperature.
        hidden: [batch, time, features], input of the output head where it predicts them.
        entropy: [batch, time] float32 in nats, itself without gradient; None in passes without gradients.
        logits: [batch, time, vocabulary], where all of them were made at once.
    """

    log_probs: torch.Tensor
    hidden: torch.Tensor
    entropy: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def check_plain_head(config: PreTrainedConfig) -> None:
    """Raise UserError if a model's configuration says that it changes the output head's logits."""
    if any(getattr(config, name, None) not in (None, 1) for name in LOGIT_CHANGES):
        raise UserError(NO_PLAIN_HEAD)


class PolicyForward:
    """Forward passes of a policy, or of the reference, through its engine."""

    def __init__(self, engine: Engine, temperature: float, chunk_size: int, shares_prompts: bool = False):
        """
        Args:
            chunk_size: tokens whose logits exist at once; 0: all.
            shares_prompts: whether rows with the same prompt read it together.
        """
        self.engine, self.temperature, self.chunk_size = engine, temperature, chunk_size
        self.has_plain_head: bool | None = None  # whether logits are just the head's output; known after a pass
        self.actions: torch.Tensor | None = None  # of the pass at work, while the head has to read them
        self.kept: torch.Tensor | None = None  # the head's input in the last pass
        self.prompts = SharedPrompts(trunk_of(engine.module)) if shares_prompts else None
        head = engine.module.get_output_embeddings()
        self.plain_forward, head.forward = head.forward, self.head_forward
        head.register_forward_hook(self.keep)
        self.head = head

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int) -> PolicyOutput:
        """[batch, prompt + response] int64 ids and mask -> output on the last `response_length` positions."""
        if self.chunk_size and self.has_plain_head is not False:
            self.actions = input_ids[:, -response_length:]
            try:
                read, hidden = self.run(input_ids, attention_mask, response_length)
            finally:
                self.actions = None
            if self.has_plain_head:
                log_probs, entropy = read.unbind(dim=-1)
                return PolicyOutput(log_probs, hidden, entropy.detach() if torch.is_grad_enabled() else None)
            print_main("note: this model scales or caps its logits; --logits_chunk_size has no effect on it")
        logits, hidden = self.run(input_ids, attention_mask, response_length)
        actions, entropy = input_ids[:, -response_length:], None
        if torch.is_grad_enabled():
            log_probs, entropy = log_probs_and_entropy(logits, actions, self.temperature)
        else:
            log_probs = log_probs_of(logits, actions, self.temperature)
        return PolicyOutput(log_probs, hidden, entropy, logits)

    def run(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and input of the head, [batch, time, ...] each, where it predicts the response."""
        prompt = input_ids.shape[1] - response_length
        with self.prompts.of(prompt) if self.prompts else nullcontext():
            output = head_output(self.engine, input_ids, attention_mask, response_length)
        hidden, self.kept = self.kept, None
        if self.has_plain_head is None:
            self.has_plain_head = bool((output[:, -1, :2] == PROBE.to(output)).all())
        return output[:, :-1], hidden[:, -response_length - 1 : -1]

    def keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Forward hook of the head."""
        self.kept = inputs[0]

    def head_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's forward pass: logits, or [batch, time + 1, 2] in their place while `actions` are to be read.

        The last position predicts what no response has. In the first pass it holds `PROBE`, which comes out of the
        model as it is only where the model does nothing more with its logits.
        """
        if self.actions is None:
            output = self.plain_forward(hidden)
        else:
            actions = nn.functional.pad(self.actions, (0, 1))
            bias = getattr(self.head, "bias", None)
            both = ChunkedLogProbs.apply(
                hidden, self.head.weight, bias, actions, self.temperature, self.chunk_size, torch.is_grad_enabled()
            )
            output = torch.stack(both, dim=-1)
        if self.has_plain_head is None:
            output = output.clone()
            output[:, -1, :2] = PROBE.to(output)
        return output


def response_logits(
    model: nn.Module | Engine, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
) -> torch.Tensor:
    """Logits that predict the last `response_length` tokens.

    [batch, prompt + response] ids and mask -> [batch, response, vocabulary].
    """
    return head_output(model, input_ids, attention_mask, response_length)[:, :-1]


@torch.no_grad()
def response_log_probs(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, temperature: float
) -> torch.Tensor:
    """Log-probabilities of the last `response_length` tokens at the sampling temperature; [batch, response] float32."""
    logits = response_logits(model, input_ids, attention_mask, response_length)
    return log_probs_of(logits, input_ids[:, -response_length:], temperature)


def head_output(
    model: nn.Module | Engine, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
) -> torch.Tensor:
    """`response_logits`, and those after the last token."""
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids_from_mask(attention_mask),
        use_cache=False,
        logits_to_keep=response_length + 1,
    ).logits


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(z / T)_a and entropy from the input h of the output head z = W h + b.

    With u = ∂L/∂log π(a) of a token, ∂L/∂z = u (e_a - softmax(z / T)) / T. The entropy has no gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        actions: torch.Tensor,
        temperature: float,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, time, features], [vocabulary, features], [vocabulary] and [batch, time] -> two [batch, time].

        Without entropy, the second holds zeros.
        """
        ctx.save_for_backward(hidden, weight, bias, actions)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        log_probs, entropy = torch.zeros(2, actions.numel(), device=hidden.device)
        for at, rows, taken in token_chunks(hidden, actions, chunk_size):
            distribution = scaled_logits(rows, weight, bias, temperature).log_softmax(dim=-1)
            log_probs[at] = distribution.gather(-1, taken).squeeze(-1)
            if with_entropy:
                entropy[at] = entropy_of(distribution)
        log_probs, entropy = log_probs.view(actions.shape), entropy.view(actions.shape)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: FunctionCtx, slopes: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, actions = ctx.saved_tensors
        slopes = (slopes / ctx.temperature).reshape(-1, 1)
        wanted = dict(zip(("hidden", "weight", "bias"), ctx.needs_input_grad, strict=False))
        to_hidden = torch.empty_like(hidden).view(-1, hidden.shape[-1]) if wanted["hidden"] else None
        # Sums over chunks in float32, whatever the model's precision.
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted["weight"] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted["bias"] else None
        for at, rows, taken in token_chunks(hidden, actions, ctx.chunk_size):
            residual = scaled_logits(rows, weight, bias, ctx.temperature).softmax(dim=-1).mul_(-slopes[at])
            residual = residual.scatter_add_(-1, taken, slopes[at]).to(hidden.dtype)  # [chunk, vocabulary]
            if to_hidden is not None:
                to_hidden[at] = residual @ weight
            if to_weight is not None:
                to_weight += residual.T @ rows
            if to_bias is not None:
                to_bias += residual.sum(dim=0)
        return (
            None if to_hidden is None else to_hidden.view_as(hidden),
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            *(None,) * 4,
        )


def token_chunks(
    hidden: torch.Tensor, actions: torch.Tensor, size: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Of [batch, time, features] and [batch, time], `size` tokens at a time: slice, [k, features], [k, 1]."""
    rows, taken = hidden.flatten(0, 1), actions.reshape(-1, 1)
    for start in range(0, len(rows), size):
        at = slice(start, start + size)
        yield at, rows[at], taken[at]


def scaled_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """The head's output at the sampling temperature: [k, features] -> [k, vocabulary] float32."""
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    return logits.float().div_(temperature)  # nobody else holds them
