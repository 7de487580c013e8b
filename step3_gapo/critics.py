"""The value models: one an objective, or one trunk with a head an objective."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from utils.engines.arrival import copy_of, shape_of, whole
from utils.engines.engines import Engine, engine_config, make_training_engine
from utils.models.configs import DTYPES
from utils.models.loading import trunk_of
from utils.models.lora import with_adapters
from utils.models.shared_prompts import shares_prompts
from utils.models.token_head import TokenHead
from utils.scoring.objectives import Objective
from utils.scoring.score_models import ScoreModel
from utils.scoring.scorers import Scorer


@dataclass
class Critic:
    """A trainable value model; `names` are the objectives its heads serve, in order."""

    names: list[str]
    engine: Engine


def build_critics(
    args: argparse.Namespace, names: list[str], modules: list[TokenHead], total_steps: int
) -> list[Critic]:
    """The value models in their engines."""
    for module in modules:
        module.shares_prompts = shares_prompts(args, module.trunk, args.responses_per_prompt)
    return [
        Critic(group, make_training_engine(module, args, args.critic_learning_rate, total_steps))
        for group, module in zip(critic_groups(args, names), modules, strict=True)
    ]


def critic_modules(
    policy: PreTrainedModel,
    args: argparse.Namespace,
    names: list[str],
    objectives: Sequence[Objective],
    scorers: Sequence[Scorer],
) -> list[TokenHead]:
    """One critic a name, started from its objective's reward or cost model; or one trunk with a head a name.

    Args:
        policy: has no engine yet.
        names: see `Needs.critics`.
    """
    if not names:
        return []
    if args.lora_dim:
        return adapted_critics(policy, args, names)
    if args.critic == "shared":
        return [critic_from_policy(policy, args, len(names))]
    scales = {objective.name: objective.scale for objective in objectives}
    starts = {name: start for name in names for scorer in scorers if (start := scorer.take_critic_start(name))}
    return [
        critic_from_scores(starts.pop(name), scales[name], DTYPES[args.dtype])
        if name in starts
        else critic_from_policy(policy, args, 1)
        for name in names
    ]


def adapted_critics(policy: PreTrainedModel, args: argparse.Namespace, names: list[str]) -> list[TokenHead]:
    """With LoRA: trees around the parameters of `policy`, which has no engine yet, with adapters of their own."""
    width, dtype = feature_width(policy), DTYPES[args.dtype]
    return [
        TokenHead(with_adapters(trunk_of(policy), args), zero_head(width, len(group), dtype))
        for group in critic_groups(args, names)
    ]


def critic_from_policy(policy: PreTrainedModel, args: argparse.Namespace, heads: int) -> TokenHead:
    """Critic on a copy of the policy's trunk, whose values are 0 everywhere at first."""
    trunk = copy_of(trunk_of(policy), engine_config(args))
    return TokenHead(trunk, zero_head(feature_width(policy), heads, DTYPES[args.dtype]))


def critic_from_scores(model: ScoreModel, scale: float, dtype: torch.dtype) -> TokenHead:
    """Critic whose first values are `scale` times those of a model that scores tokens, which becomes the critic."""
    scores = model.head
    head = zero_head(scores.in_features, 1, dtype)
    with whole(*scores.parameters()):
        head.weight.data.copy_(scale * model.slope * scores.weight.data)
        bias = 0.0 if scores.bias is None else scores.bias.item()
        head.bias.data.fill_(scale * (model.slope * bias + model.offset))
    return TokenHead(model.module.trunk, head)


def critic_groups(args: argparse.Namespace, names: list[str]) -> list[list[str]]:
    """Which of the names (`Needs.critics`) each critic serves."""
    if args.critic == "shared":
        return [names] if names else []
    return [[name] for name in names]


def values_before_actions(
    critic: Critic, input_ids: torch.Tensor, attention_mask: torch.Tensor, time: int
) -> torch.Tensor:
    """Values of the states before the last `time` tokens: [rows, prompt + time] ids and mask -> [rows, time, heads]."""
    return critic.engine(input_ids, attention_mask, input_ids.shape[1] - time)[:, -time - 1 : -1]


def zero_head(features: int, heads: int, dtype: torch.dtype) -> nn.Linear:
    """A value head that starts at 0 everywhere."""
    head = nn.Linear(features, heads, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def feature_width(policy: PreTrainedModel) -> int:
    """Features of the trunk's output, whatever the configuration calls them: those that the output head reads."""
    return shape_of(policy.get_output_embeddings().weight)[1]
