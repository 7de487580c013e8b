"""Models with random weights and experience with random numbers: all that an optimizer step needs, nothing on disk."""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from transformers import GenerationConfig, MistralForCausalLM, PreTrainedConfig, PreTrainedModel

from step3_gapo.arguments import algorithm_of, parse_args
from step3_gapo.critics import Critic, critic_groups, zero_head
from step3_gapo.experience import Experience
from step3_gapo.needs import needs_of
from step3_gapo.update import ActorUpdate
from tests.helpers import flags
from utils.engines import engines
from utils.engines.engines import make_training_engine
from utils.memory.sizes import Shape, shape_of
from utils.models.configs import DTYPES
from utils.models.token_head import TokenHead
from utils.policy.actor import Actor
from utils.process.distributed import device, rank, seed_everything
from utils.scoring.objectives import Objective

PAD, BOS, EOS, FIRST_PIECE = 0, 1, 2, 3
TOTAL_STEPS = 100_000  # of the learning-rate schedule: more than any benchmark takes
LARGE = 10**8  # parameters of models that are made where they will run: a CPU draws them for seconds


@dataclass(frozen=True)
class Size:
    """A Mistral-architecture decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Of the decoder with its output head."""
        attention = 2 * self.hidden**2 * (1 + self.kv_heads / self.heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return int(self.layers * layer + 2 * self.vocabulary * self.hidden + self.hidden)


SIZES = {
    "tiny": Size(64, 3, 4, 2, 160, 768),  # that of preset tiny
    "1m": Size(128, 4, 4, 2, 384, 768),
    "5m": Size(256, 6, 8, 4, 704, 2048),
    "14m": Size(384, 8, 8, 4, 1024, 768),  # with the vocabulary of preset tiny: its tokenizer serves both
    "20m": Size(448, 8, 8, 4, 1216, 2048),
    "40m": Size(512, 12, 8, 4, 1408, 4096),
    "50m": Size(512, 15, 8, 4, 1536, 4096),
    "200m": Size(1024, 12, 16, 8, 3072, 32000),
    "300m": Size(1024, 20, 16, 4, 2816, 32000),
    "1b": Size(2048, 20, 16, 4, 5632, 32000),
    "7b": Size(4096, 32, 32, 8, 14336, 32000),
}


@dataclass(frozen=True)
class Load:
    """What one optimizer step is made of. `batch` counts the sequences of all ranks and micro-batches."""

    size: str
    dtype: str
    batch: int
    prompt: int
    response: int


def objective_names(objectives: int) -> list[str]:
    return [f"objective_{i}" for i in range(objectives)]


def arguments_of(load: Load, ranks: int, zero_stage: int, accumulation: int = 1, **changes: Any) -> argparse.Namespace:
    """Step 3's own arguments, defaults where nothing else is asked for."""
    return parse_args(flags(**{
        "actor_model": "unused", "data": "unused", "output_dir": "unused", "algorithm": "morlhf", "dtype": load.dtype,
        "zero_stage": zero_stage, "max_prompt_length": load.prompt, "max_new_tokens": load.response,
        "per_device_train_batch_size": load.batch // (ranks * accumulation),
        "gradient_accumulation_steps": accumulation,
    } | changes))  # fmt: skip


def make_decoder(load: Load, architecture: type[PreTrainedModel] = MistralForCausalLM) -> PreTrainedModel:
    """Random weights, the same on every rank, in the shape of Mistral's decoder or of one like it, such as Llama's."""
    seed_everything(0)
    with device() if SIZES[load.size].parameters > LARGE else torch.device("cpu"):
        return architecture(decoder_config(load, architecture)).to(DTYPES[load.dtype])


def decoder_config(load: Load, architecture: type[PreTrainedModel]) -> PreTrainedConfig:
    size = SIZES[load.size]
    return architecture.config_class(
        vocab_size=size.vocabulary, hidden_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, intermediate_size=size.intermediate,
        max_position_embeddings=load.prompt + load.response, initializer_range=0.5 * size.hidden**-0.5,
        sliding_window=None, tie_word_embeddings=False, use_cache=False,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip


def shape_without_memory(load: Load) -> Shape:
    """Of `make_decoder`, for plans."""
    with torch.device("meta"):
        return shape_of(MistralForCausalLM(decoder_config(load, MistralForCausalLM)))


def make_actor(load: Load, args: argparse.Namespace, **generation: Any) -> Actor:
    return Actor(make_decoder(load), GenerationConfig(**generation), args, TOTAL_STEPS)


@contextmanager
def everything_partitioned() -> Iterator[None]:
    """ZeRO-3 keeps no small parameter whole on every rank: what the large ones of a real model meet."""
    original = engines.training_config

    def lowered(*arguments: Any) -> dict[str, Any]:
        config = original(*arguments)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    with mock.patch.object(engines, "training_config", lowered):
        yield


def make_critics(load: Load, args: argparse.Namespace, objectives: int) -> list[Critic]:
    """A critic an objective, or with `--critic shared` one with a head an objective; each as large as the policy."""
    critics = []
    for names in critic_groups(args, objective_names(objectives)):
        trunk = make_decoder(load).model
        module = TokenHead(trunk, zero_head(trunk.config.hidden_size, len(names), DTYPES[load.dtype]))
        critics.append(Critic(names, make_training_engine(module, args, args.critic_learning_rate, TOTAL_STEPS)))
    return critics


def make_update(actor: Actor, args: argparse.Namespace, objectives: int, **changes: Any) -> ActorUpdate:
    """An update of `actor` under other flags, such as `algorithm`, `gradient_scope`; many may share one actor."""
    args, names = copy.copy(args), objective_names(objectives)
    vars(args).update(changes)
    args.rescale_power = 1.0 if args.algorithm == "gapo" else None
    algorithm = algorithm_of(args, [Objective(name, "reward", "unused") for name in names])
    return ActorUpdate(actor, algorithm, needs_of(args, algorithm), args)


def make_experience(
    actor: Actor, load: Load, args: argparse.Namespace, objectives: int, keep_hidden: bool = False
) -> list[Experience]:
    """This rank's micro-batches of one optimizer step: random tokens, prompts and responses of many lengths.

    Args:
        keep_hidden: keep the output head's input, as a rollout does where the update has use for it.
    """
    seed_everything(1 + rank())
    size, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    with device():
        everything = random_experience(load, size * steps, objective_names(objectives))
        micro_batches = [everything.select(part) for part in torch.arange(size * steps).split(size)]
    for batch in micro_batches:
        with torch.no_grad():
            output = actor.forward(batch.input_ids, batch.attention_mask, load.response)
            batch.log_probs = output.log_probs * batch.mask
            batch.hidden = output.hidden if keep_hidden else None
    return micro_batches


def random_experience(load: Load, rows: int, names: list[str]) -> Experience:
    """Experience on the default device, but for the log-probabilities."""
    prompts = torch.randint(load.prompt // 2, load.prompt + 1, (rows, 1))
    responses = torch.randint(load.response // 2, load.response + 1, (rows, 1))
    mask = (torch.arange(load.response) < responses).float()
    attention_mask = torch.cat([torch.arange(load.prompt) >= load.prompt - prompts, mask.bool()], dim=1).long()
    ids = torch.randint(FIRST_PIECE, SIZES[load.size].vocabulary, attention_mask.shape) * attention_mask
    advantages, values, returns = ({name: torch.randn(mask.shape) for name in names} for _ in range(3))
    return Experience(
        ids, attention_mask, mask, finished=mask[:, -1], log_probs=mask, ref_log_probs=mask, scores={}, judged={},
        values=values, advantages=advantages, returns=returns, counted=dict.fromkeys(advantages, mask[:, 0]),
    )  # fmt: skip
