"""A policy that is trained: its engine, its forward pass, and a twin without hooks."""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
from torch import nn
from transformers import PreTrainedModel

from utils.engines.engines import make_training_engine
from utils.policy.forward import PolicyForward
from utils.process.distributed import device


class TrainedPolicy:
    """A policy: trained through `engine`; `twin` shares its parameters, without DeepSpeed's hooks.

    The twin is a copy of the module tree around the very same parameters.

    Args:
        args: `--logits_chunk_size`, and what `make_training_engine` reads.
        shares_prompts: whether rows with the same prompt read it together (see `utils.models.shared_prompts`).
        further_config: sections of DeepSpeed's configuration.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: argparse.Namespace,
        learning_rate: float,
        total_steps: int,
        temperature: float,
        shares_prompts: bool,
        further_config: dict[str, Any] | None = None,
    ):
        self.twin = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
        self.parameters = list(model.parameters())
        self.engine = make_training_engine(model, args, learning_rate, total_steps, further_config)
        for buffer in self.twin.buffers():
            buffer.data = buffer.data.to(device())
        self.forward = PolicyForward(self.engine, temperature, args.logits_chunk_size, shares_prompts)

    @contextmanager
    def gathered_head(self) -> Iterator[nn.Module]:
        """The output head with whole parameters on every rank, without hooks."""
        head = self.twin.get_output_embeddings()
        partitioned = [p for p in head.parameters() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            yield head
