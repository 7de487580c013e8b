"""The policy under DeepSpeed: trained through its engine, sampled through a twin without hooks."""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
from deepspeed.module_inject.replace_policy import replace_policies
from transformers import GenerationConfig, PreTrainedModel

from utils.models.shared_prompts import shares_prompts
from utils.policy.sampling import compaction_obstacle, decode, repeated
from utils.policy.trained import TrainedPolicy
from utils.process.distributed import print_main


class Actor(TrainedPolicy):
    """The policy: trained through `engine`, sampled through a hook-free twin that shares its parameters.

    ZeRO-3 hooks fetch and release every layer at every token of generation. For the twin all parameters are gathered
    once, all tokens are generated, and they are released again. On ZeRO 0-2 gathering is a no-op and the twin generates
    just the same.
    """

    def __init__(
        self, model: PreTrainedModel, generation: GenerationConfig, args: argparse.Namespace, total_steps: int
    ):
        self.hybrid = args.enable_hybrid_engine
        obstacle = hybrid_engine_obstacle(model) if self.hybrid else None
        if obstacle:
            print_main(f"--enable_hybrid_engine: {obstacle}; generating natively, parameters gathered once a rollout")
            self.hybrid = False
        self.compact_at = args.compact_at
        obstacle = compaction_obstacle(model) if self.compact_at and not self.hybrid else None
        if obstacle:
            print_main(f"--compact_at: {obstacle}; responses that have ended stay in the batch")
        section = {"hybrid_engine": {"enabled": True, "max_out_tokens": args.max_prompt_length + args.max_new_tokens}}
        shares = shares_prompts(args, model, args.responses_per_prompt)
        super().__init__(
            model,
            args,
            args.actor_learning_rate,
            total_steps,
            args.temperature,
            shares,
            section if self.hybrid else None,
        )
        self.twin.generation_config = self.generation = generation  # `model` keeps what its folder says

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Whole parameters on every rank for as long as the context lasts."""
        if self.hybrid:
            self.engine.eval()
            try:
                yield
            finally:
                self.engine.train()
        else:
            partitioned = [p for p in self.parameters if hasattr(p, "ds_id")]
            with plain_linear(), deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
                yield

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, copies: int = 1) -> torch.Tensor:
        """[prompts, prompt] left-padded -> [prompts · copies, prompt + response]; call inside `gathered()`."""
        module = self.engine.module if self.hybrid else self.twin
        # What `self.generation` leaves open, transformers would take from the settings of the model's folder.
        own, module.generation_config = module.generation_config, self.generation
        try:
            if self.hybrid:
                input_ids, attention_mask = repeated(input_ids, copies), repeated(attention_mask, copies)
                return self.engine.generate(
                    input_ids=input_ids, attention_mask=attention_mask, generation_config=self.generation
                )
            return decode(self.twin, input_ids, attention_mask, self.generation, self.compact_at, copies)
        finally:
            module.generation_config = own


@contextmanager
def plain_linear() -> Iterator[None]:
    """torch's own `linear`. What ZeRO-3 puts in its place serves backward passes, and slows a small model's tokens."""
    replacement, torch.nn.functional.linear = torch.nn.functional.linear, torch._C._nn.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = replacement


def hybrid_engine_obstacle(model: PreTrainedModel) -> str | None:
    """Why DeepSpeed's hybrid engine cannot generate with `model` here, or None where it can."""
    if not torch.cuda.is_available():
        return "its inference kernels need CUDA"
    if not deepspeed.ops.__compatible_ops__.get("transformer_inference", False):
        return "its inference kernels cannot be built here (see ds_report)"
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if re.search(r"\d[a-z]", architectures):  # such as 9.0a
        return f"DeepSpeed cannot read TORCH_CUDA_ARCH_LIST={architectures} when it builds them: unset it"
    return missing_inference_policy(model)


def missing_inference_policy(model: PreTrainedModel) -> str | None:
    """What stands against the hybrid engine in a model's architecture, on any machine; None where nothing does."""
    accelerated = set()
    for policy in replace_policies:
        policy(None)  # an instance fills in the layer classes its policy is for
        classes = policy._orig_layer_class
        accelerated.update(classes if isinstance(classes, list) else [classes])
    if not any(type(module) in accelerated for module in model.modules()):
        return f"DeepSpeed has no inference policy for {type(model).__name__}"
    return None
