"""Heads on trunks: a linear head on every token of a decoder, and the one score of an encoder."""

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.models.loading import position_ids_from_mask


class TokenHead(nn.Module):
    """A decoder trunk and a linear head on every token: a reward model, a cost model or a critic."""

    def __init__(self, trunk: nn.Module, head: nn.Linear):
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, time] ids and mask -> [batch, time, heads] float32."""
        hidden = self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids_from_mask(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden).float()


class PooledHead(nn.Module):
    """One label of a classifier that reads a text as a whole: every token has the score of the text."""

    def __init__(self, model: PreTrainedModel, label: int):
        super().__init__()
        self.model, self.label = model, label

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, time] ids and mask, padded on the right -> [batch, time, 1] float32."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # [batch, labels]
        return logits[:, None, self.label : self.label + 1].expand(-1, input_ids.shape[1], -1).float()
