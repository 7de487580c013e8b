"""Heads on trunks: a linear head on every token of a decoder, and the one score of an encoder."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.loading import position_ids_from_mask
from utils.models.shared_prompts import read_prompts_once


class TokenHead(nn.Module):
    """A decoder trunk and a linear head on every token: a reward model, a cost model or a critic.

    Attributes:
        shares_prompts: whether rows with the same prompt read it together, where a pass says how long it is.
    """

    def __init__(self, trunk: nn.Module, head: nn.Linear):
        super().__init__()
        self.trunk, self.head, self.shares_prompts = trunk, head, False

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int = 0) -> torch.Tensor:
        """[batch, time] ids and mask -> [batch, time, heads] float32.

        Args:
            prompt: so many columns at first are a prompt; where prompts are shared, the last of them and what follows
                are all of the result: callers count from its end.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs["position_ids"] = position_ids_from_mask(attention_mask)
        if prompt and self.shares_prompts:
            output = read_prompts_once(self.trunk, prompt, **inputs)
        else:
            output = self.trunk(**inputs, use_cache=False)
        return self.head(output.last_hidden_state).float()


class Rows(nn.Module):
    """Linear heads of one output each, side by side: each as if it were alone, to the bit."""

    def __init__(self, heads: Sequence[nn.Linear]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., features] -> [..., heads]."""
        return torch.cat([head(hidden) for head in self.heads], dim=-1)


class PooledHead(nn.Module):
    """Labels of a classifier that reads a text as a whole: every token has the scores of the text."""

    def __init__(self, model: PreTrainedModel, labels: Sequence[int]):
        super().__init__()
        self.model, self.labels = model, list(labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int = 0) -> torch.Tensor:
        """[batch, time] ids and mask, padded on the right -> [batch, time, labels chosen] float32."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # [batch, labels]
        return logits[:, None, self.labels].expand(-1, input_ids.shape[1], -1).float()
