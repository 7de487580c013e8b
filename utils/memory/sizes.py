"""Sizes of what a run allocates: arithmetic on the shapes of its models and its flags.

Counts what DeepSpeed 0.19.8 really allocates, which for AdamW on n parameters of w bytes on r ranks is

    ZeRO stage        0                  1, 2              3
    weights           n·w                n·w               n·w/r, and those of one model gathered while it computes
    master weights    4n (not in fp32)   4n/r              4n/r
    moments           8n                 8n/r              8n/r
    gradients         n·w                n·w/r             n·w/r, at all times
    while reducing    n·w copied         a bucket and n·w  a bucket, at all times, and n·w
    in the step       4n (not in fp32)   4n/r              4n/r

Buckets hold 5e8 numbers: all of them on a GPU, where they are reserved; those that are used on a CPU. torch's AdamW
takes 8 bytes a number more for its own intermediate results where it is not fused (on a CPU).

While a model is loaded, one of its parameters at a time lies in the host's memory beside what has arrived.
"""

import argparse
import copy
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from utils.data.batching import accumulates, share_of
from utils.models.shared_prompts import allows_sharing

BUCKET = 5 * 10**8  # numbers that DeepSpeed reduces at once
LIVE = 10**9  # gathered numbers that ZeRO-3 keeps at most while a model computes
MASTER, MOMENTS, INTERMEDIATE, FLOAT = 4, 8, 8, 4  # bytes a number
HEAD_CHUNK = 1024  # tokens whose last-layer gradients are made at once
GIB = 2**30
DEVICE, HOST = "device", "host"
MARGINS = ("margin", "scored margin")

Ledger = Counter  # {(DEVICE or HOST, item): bytes}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        parameters: all, tied ones once.
        largest: numbers of the largest parameter.
        adapted: Σ (inputs + outputs) of the linear layers, what LoRA of rank 1 adds.
        gated: whether the feed-forward layers are gated (three matrices) or plain (two).
    """

    parameters: int
    largest: int
    adapted: int
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    gated: bool


@dataclass(frozen=True)
class PlannedModel:
    """A model that a run holds.

    Attributes:
        use: policy, critic, reference or score in step 3; dpo (a policy trained on pairs), reference, margin or scored
            margin (of a policy, of a score model) in its form on pairs; sft in stage 1; reward, or a frozen backbone,
            in stage 2.
    """

    use: str
    shape: Shape

    @property
    def trained(self) -> bool:
        return self.use not in ("reference", "score", "backbone", *MARGINS)


@dataclass(frozen=True)
class Surroundings:
    """Where a run is planned to happen.

    Attributes:
        memory, host_memory: bytes a rank may use of its device and of its machine; None where that is not known.
        overhead, host_overhead: bytes that libraries take there before there is a model.
        longest: (prompt, response) tokens of the longest sequences that are trained on.
        machines: among which the ranks are divided.
        sequences: rows of a batch that an example takes.
        objectives: m.
        compares: whether the algorithm compares the objectives' gradients.
        shares_prompts: whether policy and critics can read a prompt once for its responses
            (`utils.models.shared_prompts`).
    """

    ranks: int
    on_gpu: bool
    memory: int
    host_memory: int | None
    overhead: int
    host_overhead: int
    longest: tuple[int, int]
    machines: int = 1
    sequences: int = 1
    objectives: int = 1
    compares: bool = False
    shares_prompts: bool = False

    @property
    def ranks_here(self) -> int:
        """Ranks of the fullest machine."""
        return -(-self.ranks // self.machines)


def shape_of(model: Any) -> Shape:
    """Sizes of a model of transformers, which may be without memory (on the meta device)."""
    config = model.config.get_text_config()
    named = dict(model.named_parameters())
    linear = [p.shape for name, p in named.items() if p.ndim == 2 and re.search(r"\.\d+\.", name)]
    heads = config.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in named.values()),
        largest=max(p.numel() for p in named.values()),
        adapted=sum(sum(shape) for shape in linear),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        intermediate=getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        gated=any("gate_proj" in name for name in named),
    )


class Memory:
    """Sizes of everything a run allocates, under its flags."""

    def __init__(self, models: list[PlannedModel], args: argparse.Namespace, around: Surroundings):
        self.args, self.around = args, around
        self.stage, self.offload = args.zero_stage, args.offload
        self.width = 2 if args.dtype == "bf16" else FLOAT
        self.lora = getattr(args, "lora_dim", 0)
        self.parked = getattr(args, "park_frozen_models", False)
        if getattr(args, "critic", "separate") == "shared":
            first = next(i for i, model in enumerate(models) if model.use == "critic")
            models = [m for i, m in enumerate(models) if m.use != "critic" or i == first]
        self.models = models
        self.in_turn = [m for m in models if m.trained]  # in the order of their backward passes

    # --- what stays

    def with_only(self, models: list[PlannedModel]) -> "Memory":
        """The same run, as long as only these of its models are there."""
        partial = copy.copy(self)
        partial.models, partial.in_turn = models, [model for model in models if model.trained]
        return partial

    def place(self, offloaded: bool) -> str:
        return HOST if offloaded and self.around.on_gpu else DEVICE

    def shared(self, numbers: int, from_stage: int) -> int:
        """A rank's part of what is partitioned from a ZeRO stage on."""
        return numbers // self.around.ranks if self.stage >= from_stage else numbers

    def trained_numbers(self, model: PlannedModel) -> int:
        return self.lora * model.shape.adapted if self.lora else model.shape.parameters

    def base_numbers(self, model: PlannedModel) -> int:
        """Parameters that a model does not share with another one."""
        return 0 if self.lora and model.use in ("critic", "reference") else model.shape.parameters

    def weights(self) -> Ledger:
        """Parameters of all models; with LoRA, the policy's base serves the reference and the critics."""
        ledger = Ledger()
        for model in self.models:
            adapters = self.trained_numbers(model) if self.lora and model.trained else 0
            base = self.base_numbers(model)
            unchanged = not model.trained or self.lora > 0
            offloaded = self.stage == 3 and self.offload
            parked = self.parked and not model.trained
            item = "frozen weights" if unchanged else "trained weights"
            ledger[self.place(offloaded or parked), item] += self.shared(base, 3) * self.width
            ledger[self.place(offloaded), "trained weights"] += self.shared(adapters, 3) * self.width
        return ledger

    def optimizers(self) -> Ledger:
        """Master weights, moments and what ZeRO keeps at all times, of all models that are trained."""
        ledger, place = Ledger(), self.place(self.offload)
        for model in self.in_turn:
            numbers = self.trained_numbers(model)
            part = self.shared(numbers, 1)
            if self.stage > 0 or self.width < FLOAT:
                ledger[place, "optimizer"] += MASTER * (part if self.stage else numbers)
            ledger[place, "optimizer"] += MOMENTS * part
            if self.offload:
                ledger[place, "gradients"] += FLOAT * part
            if self.offload and self.stage < 3:
                ledger[place, "optimizer"] += self.width * numbers  # a copy of the weights
            if self.stage == 3:
                ledger[place, "gradients"] += self.width * part
                ledger[DEVICE, "reduction buckets"] += self.bucket(numbers)
        return ledger

    def bucket(self, numbers: int) -> int:
        return self.width * (BUCKET if self.around.on_gpu else min(numbers, BUCKET))

    def libraries(self) -> Ledger:
        ledger = Ledger({(DEVICE, "libraries"): self.around.overhead})
        if self.around.on_gpu:
            ledger[HOST, "libraries"] = self.around.host_overhead
        return ledger

    def resident(self) -> Ledger:
        return self.libraries() + self.weights() + self.optimizers()

    def visitor(self, model: PlannedModel) -> Ledger:
        """What a model takes of the device only while it computes: parked, or gathered under ZeRO-3."""
        ledger, numbers = Ledger(), model.shape.parameters
        if self.stage == 3:
            ledger[DEVICE, "gathered weights"] = self.width * min(numbers, LIVE)
        elif self.parked and not model.trained and self.around.on_gpu and not (self.lora and model.use == "reference"):
            ledger[DEVICE, "frozen weights"] = self.width * numbers
        return ledger

    # --- what comes and goes with a backward pass and a step

    def gradient(self, model: PlannedModel) -> int:
        """Bytes of a gradient between its backward pass and the step, beyond what stays."""
        if self.stage == 3 or (self.offload and self.stage):
            return 0
        return self.width * self.shared(self.trained_numbers(model), 1)

    def reduction(self, model: PlannedModel) -> int:
        """Bytes that reducing a gradient takes at the end of a backward pass, beside the gradient."""
        numbers = self.trained_numbers(model)
        flat = self.width * min(numbers, BUCKET)
        if self.stage in (0, 3):
            return flat
        received = flat if self.around.ranks > 1 else 0
        return self.bucket(numbers) + max(0, received - self.gradient(model))

    def step(self, model: PlannedModel) -> Ledger:
        """An optimizer's float32 gradient and intermediate results."""
        ledger, numbers = Ledger(), self.trained_numbers(model)
        part = self.shared(numbers, 1)
        if not self.offload and (self.stage or self.width < FLOAT):
            ledger[DEVICE, "optimizer step"] += FLOAT * (part if self.stage else numbers)
        elif not self.offload:
            ledger[DEVICE, "gradients"] += self.gradient(model)
        if self.stage == 0 and self.width < FLOAT:
            ledger[DEVICE, "gradients"] += self.gradient(model)
        if self.offload or not self.around.on_gpu:
            at_once = part if self.stage else min(numbers, model.shape.largest)
            ledger[self.place(self.offload), "optimizer step"] += INTERMEDIATE * at_once
        return ledger

    # --- activations

    @property
    def accumulates(self) -> bool:
        """Whether a step has several micro-batches."""
        return accumulates(self.args)

    @property
    def responses_per_prompt(self) -> int:
        return getattr(self.args, "responses_per_prompt", None) or self.around.sequences

    def rows(self) -> int:
        """Sequences of a micro-batch, all as long as the longest."""
        args, budget = self.args, getattr(self.args, "micro_batch_tokens", 0)
        if not budget:
            return args.per_device_train_batch_size * self.around.sequences
        return min(max(1, budget // sum(self.around.longest)), self.step_rows)

    @property
    def step_rows(self) -> int:
        """Sequences of an optimizer step on a rank."""
        examples = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return examples * self.around.sequences

    @property
    def step_rows_compared(self) -> int:
        """Those whose gradients are compared (`--gram_fraction`)."""
        return share_of(getattr(self.args, "gram_fraction", None) or 1.0, self.step_rows)

    def compared_rows(self) -> int:
        """Sequences of a micro-batch of these."""
        return min(self.rows(), self.step_rows_compared)

    def other_rows(self) -> int:
        """Sequences of a micro-batch of the others, which only descend; 0 where there are none."""
        return min(self.rows(), self.step_rows - self.step_rows_compared)

    def activations(self, model: PlannedModel, rows: int) -> int:
        """Bytes that a forward pass over a micro-batch keeps for its backward pass, without logits."""
        shape, length = model.shape, sum(self.around.longest)
        attention = shape.heads * shape.head_size
        feed_forward = 4 * shape.intermediate if shape.gated else 5 * shape.intermediate
        norms = (6 if self.width == FLOAT else 8) * shape.hidden  # float32 within
        tokens = self.tokens_read(rows)
        seen = rows * length * 2 * attention  # keys and values
        layer = tokens * (norms + 2 * attention + feed_forward + length) + seen  # `length`: a row of the attention mask
        if self.args.gradient_checkpointing:
            kept = tokens * shape.layers * shape.hidden + layer
        else:
            kept = shape.layers * layer
        return self.width * (kept + tokens * 4 * shape.hidden)

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is read once for its responses under these flags."""
        return self.around.shares_prompts and allows_sharing(self.args, self.responses_per_prompt)

    def tokens_read(self, rows: int) -> int:
        """Tokens of a pass over so many sequences, which may be those of all prompts of a rollout."""
        prompt, response = self.around.longest
        prompts = rows
        if self.shares_prompts and hasattr(self.args, "generation_batches"):
            prompts = min(rows, self.args.per_device_prompt_batch_size * self.args.generation_batches)
        elif self.shares_prompts:
            prompts = rows // self.around.sequences
        return prompts * prompt + rows * response

    def working(self, model: PlannedModel, tokens: int) -> int:
        """Bytes of the layer that is being computed, without gradients."""
        shape = model.shape
        return tokens * self.width * (3 * shape.intermediate + 4 * shape.hidden)

    def logits(self, model: PlannedModel, tokens: int, copies: int) -> int:
        """Bytes of the logits of so many tokens; in chunks where `--logits_chunk_size` says so."""
        chunk = getattr(self.args, "logits_chunk_size", 0)
        if chunk:
            return min(chunk, tokens) * model.shape.vocabulary * (self.width + 2 * FLOAT)
        return tokens * model.shape.vocabulary * self.width * copies

    def key_values(self, model: PlannedModel, rows: int) -> int:
        """Bytes of the keys and values of all layers, and of one layer's once more while they change."""
        shape, length = model.shape, sum(self.around.longest)
        return 2 * (shape.layers + 1) * shape.kv_heads * shape.head_size * rows * length * self.width
