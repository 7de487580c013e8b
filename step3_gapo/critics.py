"""The value models: one an objective, or one trunk with a head an objective."""

import argparse
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from step3_gapo.scorers import Scorer
from utils.engines import Engine, make_training_engine
from utils.lora import with_adapters
from utils.models import DTYPES, load_causal_lm, trunk_of
from utils.objectives import Objective
from utils.token_head import TokenHead


@dataclass
class Critic:
    """A trainable value model; `names` are the objectives its heads serve, in order."""

    names: list[str]
    engine: Engine


def build_critics(
    args: argparse.Namespace,
    objectives: list[Objective],
    scorers: list[Scorer],
    adapted: list[TokenHead],
    total_steps: int,
) -> list[Critic]:
    """One critic an objective, started from its reward or cost model; or one trunk with a head an objective.

    Args:
        adapted: with LoRA, `adapted_critics`; else none.
    """
    if adapted:
        groups = zip(critic_groups(args, objectives), adapted, strict=True)
    elif args.critic == "shared":
        groups = [([o.name for o in objectives], critic_from_policy(args, len(objectives)))]
    else:
        from_scores = {scorer.objective.name: scorer.starts_critic for scorer in scorers}
        groups = (([o.name], separate_critic(o, args, from_scores[o.name])) for o in objectives)
    return [  # each is read when the one before has its engine
        Critic(names, make_training_engine(module, args, args.critic_learning_rate, total_steps))
        for names, module in groups
    ]


def adapted_critics(policy: PreTrainedModel, args: argparse.Namespace, objectives: list[Objective]) -> list[TokenHead]:
    """With LoRA: trees around the parameters of `policy`, which has no engine yet, with adapters of their own."""
    width, dtype = feature_width(policy), DTYPES[args.dtype]
    return [
        TokenHead(with_adapters(trunk_of(policy), args), zero_head(width, len(names), dtype))
        for names in critic_groups(args, objectives)
    ]


def critic_from_policy(args: argparse.Namespace, heads: int) -> TokenHead:
    """Critic on the trunk of the policy, whose values are 0 everywhere at first."""
    policy = load_causal_lm(args.actor_model, "--actor_model", DTYPES[args.dtype])
    return TokenHead(trunk_of(policy), zero_head(feature_width(policy), heads, DTYPES[args.dtype]))


def separate_critic(objective: Objective, args: argparse.Namespace, from_scores: bool) -> TokenHead:
    """Critic whose first values are its model's, where that has a value for every token; else from the policy."""
    if not from_scores:
        return critic_from_policy(args, 1)
    model = objective.load_model(DTYPES[args.dtype])
    trunk, scores = model.module.trunk, model.module.head
    head = zero_head(scores.in_features, 1, DTYPES[args.dtype])
    head.weight.data.copy_(objective.scale * model.slope * scores.weight.data)
    bias = 0.0 if scores.bias is None else scores.bias.item()
    head.bias.data.fill_(objective.scale * (model.slope * bias + model.offset))
    return TokenHead(trunk, head)


def critic_groups(args: argparse.Namespace, objectives: list[Objective]) -> list[list[str]]:
    """Names of the objectives of each critic."""
    names = [objective.name for objective in objectives]
    return [names] if args.critic == "shared" else [[name] for name in names]


def zero_head(features: int, heads: int, dtype: torch.dtype) -> nn.Linear:
    """A value head that starts at 0 everywhere."""
    head = nn.Linear(features, heads, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def feature_width(policy: PreTrainedModel) -> int:
    """Features of the trunk's output, whatever the configuration calls them: those that the output head reads."""
    return policy.get_output_embeddings().weight.shape[1]
