"""The models of step 3 under DeepSpeed: actor, reference, one critic an objective, reward and cost models."""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from deepspeed.module_inject.replace_policy import replace_policies
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils.distributed import device, is_main, print_main
from utils.engines import Engine, gathered_weights, make_frozen_engine, make_training_engine
from utils.models import (
    DTYPES,
    export_model,
    load_causal_lm,
    load_score_model,
    load_tokenizer,
    position_ids_from_mask,
    same_tokenizer,
)
from utils.objectives import Objective
from utils.output import finished_files, mark_finished
from utils.rank_watch import beat


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


@dataclass
class ScoreModel:
    """A frozen reward or cost model. `tokenizer` is None when it shares the policy's."""

    objective: Objective
    engine: Engine
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None


@dataclass
class Critic:
    """A trainable value model; `names` are the objectives its heads serve, in order."""

    names: list[str]
    engine: Engine


@dataclass
class ActorOutput:
    """What one forward pass of the policy gives for the response positions.

    Attributes:
        logits: [batch, time, vocabulary], position t predicts action t; None where only the rest was kept.
        hidden: [batch, time, features], input of the output head.
    """

    logits: torch.Tensor | None
    hidden: torch.Tensor


class Actor:
    """The policy: trained through `engine`, sampled through a hook-free twin that shares its parameters.

    ZeRO-3 hooks fetch and release every layer at every token of generation. The twin is a copy of the module
    tree around the very same parameters, without hooks: they are gathered once, all tokens are generated, and
    they are released again. On ZeRO 0-2 gathering is a no-op and the twin generates just the same.
    """

    def __init__(
        self, model: PreTrainedModel, generation: GenerationConfig, args: argparse.Namespace, total_steps: int
    ):
        self.twin = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
        self.twin.generation_config = model.generation_config = generation
        self.parameters = list(model.parameters())
        self.hybrid = args.enable_hybrid_engine
        obstacle = hybrid_engine_obstacle(model) if self.hybrid else None
        if obstacle:
            print_main(f"--enable_hybrid_engine: {obstacle}; generating natively, parameters gathered once a rollout")
            self.hybrid = False
        section = {"hybrid_engine": {"enabled": True, "max_out_tokens": args.max_prompt_length + args.max_new_tokens}}
        self.engine = make_training_engine(
            model, args, args.actor_learning_rate, total_steps, section if self.hybrid else None
        )
        for buffer in self.twin.buffers():
            buffer.data = buffer.data.to(device())
        self.has_plain_head: bool | None = None  # whether the logits are just the head's output; known after a pass
        self._head: tuple[torch.Tensor, torch.Tensor] | None = None  # input and output in the last pass
        self.engine.module.get_output_embeddings().register_forward_hook(self._keep_head)

    def _keep_head(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._head = inputs[0], output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int) -> ActorOutput:
        """[batch, prompt + response] ids and mask -> output on the last `response_length` positions."""
        logits = response_logits(self.engine, input_ids, attention_mask, response_length)
        (hidden, output), self._head = self._head, None
        if self.has_plain_head is None:  # some models scale or cap them
            self.has_plain_head = torch.allclose(output[0, -2], logits[0, -1], equal_nan=True)
        return ActorOutput(logits, hidden[:, -response_length - 1 : -1])

    @contextmanager
    def gathered_head(self) -> Iterator[nn.Module]:
        """The output head with whole parameters on every rank, without hooks."""
        head = self.twin.get_output_embeddings()
        partitioned = [p for p in head.parameters() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            yield head

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

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, prompt] left-padded -> [batch, prompt + response]; call inside `gathered()`."""
        generator = self.engine if self.hybrid else self.twin
        return generator.generate(input_ids=input_ids, attention_mask=attention_mask)


@contextmanager
def plain_linear() -> Iterator[None]:
    """torch's own `linear`. What ZeRO-3 puts in its place serves backward passes, and slows a small model's tokens."""
    replacement, torch.nn.functional.linear = torch.nn.functional.linear, torch._C._nn.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = replacement


def response_logits(
    engine: Engine, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
) -> torch.Tensor:
    """Logits that predict the last `response_length` tokens.

    [batch, prompt + response] ids and mask -> [batch, response, vocabulary].
    """
    return engine(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids_from_mask(attention_mask),
        use_cache=False,
        logits_to_keep=response_length + 1,
    ).logits[:, :-1]


class RLHFEngine:
    """Builds and holds all models; knows nothing of algorithms."""

    def __init__(
        self,
        args: argparse.Namespace,
        objectives: list[Objective],
        tokenizer: PreTrainedTokenizerBase,
        generation: GenerationConfig,
        total_steps: int,
    ):
        dtype = DTYPES[args.dtype]
        self.tokenizer = tokenizer
        beat("loading models")
        self.score_models = [frozen_score_model(objective, args, tokenizer) for objective in objectives]
        self.reference = make_frozen_engine(load_causal_lm(args.actor_model, "--actor_model", dtype), args)
        self.critics = build_critics(args, [o for o in objectives if o.optimized], self.score_models, total_steps)
        self.actor = Actor(load_causal_lm(args.actor_model, "--actor_model", dtype), generation, args, total_steps)

    def trained(self) -> dict[str, Engine]:
        """The engines whose states a checkpoint holds."""
        return {"actor": self.actor.engine} | {f"critic_{i}": critic.engine for i, critic in enumerate(self.critics)}

    def save_policy(self, directory: str | Path) -> None:
        """Export the actor into a Hugging Face directory, gathered one parameter at a time; complete or not at all."""
        model = self.actor.engine.module
        weights = gathered_weights(model)
        if is_main():
            with finished_files(directory) as folder:
                export_model(model, self.tokenizer, folder, weights)
            mark_finished(directory)


def frozen_score_model(
    objective: Objective, args: argparse.Namespace, policy_tokenizer: PreTrainedTokenizerBase
) -> ScoreModel:
    """Load one reward or cost model; keep its tokenizer only where it differs from the policy's."""
    beat(f"loading the {objective.kind} model of {objective.name}")
    model = load_score_model(objective.path, objective.flag, DTYPES[args.dtype])
    tokenizer = load_tokenizer(objective.path, objective.flag)
    same = same_tokenizer(tokenizer, policy_tokenizer)
    engine = make_frozen_engine(TokenHead(model.base_model, model.score), args)
    return ScoreModel(objective, engine, model.config, None if same else tokenizer)


def build_critics(
    args: argparse.Namespace, objectives: list[Objective], score_models: list[ScoreModel], total_steps: int
) -> list[Critic]:
    """One critic an objective, started from its reward or cost model; or one trunk with a head an objective."""
    dtype = DTYPES[args.dtype]
    if args.critic == "shared":
        trunk = load_causal_lm(args.actor_model, "--actor_model", dtype).base_model
        groups = [([o.name for o in objectives], TokenHead(trunk, zero_head(trunk, len(objectives), dtype)))]
    else:
        own_tokenizer = {m.objective.name: m.tokenizer is not None for m in score_models}
        groups = [([o.name], separate_critic(o, args, own_tokenizer[o.name])) for o in objectives]
    return [
        Critic(names, make_training_engine(module, args, args.critic_learning_rate, total_steps))
        for names, module in groups
    ]


def separate_critic(objective: Objective, args: argparse.Namespace, foreign_tokenizer: bool) -> TokenHead:
    """Critic whose first values are its model's scores; from the policy when that model reads other tokens."""
    dtype = DTYPES[args.dtype]
    if foreign_tokenizer:
        trunk = load_causal_lm(args.actor_model, "--actor_model", dtype).base_model
        return TokenHead(trunk, zero_head(trunk, 1, dtype))
    model = load_score_model(objective.path, objective.flag, dtype)
    head = zero_head(model.base_model, 1, dtype)
    sign, offset = objective.sign_and_offset(model.config)
    head.weight.data.copy_(sign * objective.scale * model.score.weight.data)
    head.bias.data.fill_(objective.scale * offset)
    return TokenHead(model.base_model, head)


def zero_head(trunk: PreTrainedModel, heads: int, dtype: torch.dtype) -> nn.Linear:
    """A value head that starts at 0 everywhere."""
    head = nn.Linear(trunk.config.hidden_size, heads, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def hybrid_engine_obstacle(model: PreTrainedModel) -> str | None:
    """Why DeepSpeed's hybrid engine cannot generate with `model` here, or None where it can."""
    if not torch.cuda.is_available():
        return "its inference kernels need CUDA"
    if not deepspeed.ops.__compatible_ops__.get("transformer_inference", False):
        return "its inference kernels cannot be built here (see ds_report)"
    accelerated = set()
    for policy in replace_policies:
        policy(None)  # an instance fills in the layer classes its policy is for
        classes = policy._orig_layer_class
        accelerated.update(classes if isinstance(classes, list) else [classes])
    if not any(type(module) in accelerated for module in model.modules()):
        return f"DeepSpeed has no inference policy for {type(model).__name__}"
    return None
