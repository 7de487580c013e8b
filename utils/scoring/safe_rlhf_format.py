"""Safe RLHF's score models (beaver-7b): their template, their statistics, their class."""

import functools
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedModel,
    initialization,
)

NORMALIZER_EPSILON = 1e-8  # Safe RLHF adds it to the standard deviation
STATISTICS = ("normalizer.mean", "normalizer.var")  # of its score models
# The conversation that Safe RLHF trains its models on; their tokenizers bring no chat template. Its data has no
# system turns: here they come before the first user. BOS comes as an id: as text it would change the ids of the first
# word, which SentencePiece begins with a space.
SAFE_RLHF_TEMPLATE = """\
{{- 'BEGINNING OF CONVERSATION: ' -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ASSISTANT:' -}}
{%- elif message['role'] == 'assistant' -%}{{- message['content'] + eos_token -}}
{%- else -%}{{- message['content'] + ' ' -}}
{%- endif -%}
{%- endfor -%}"""


def is_safe_rlhf(config: Any) -> bool:
    """Whether config.json names a score model of Safe RLHF: LlamaForScore, formerly LlamaModelForScore."""
    return any(name.endswith("ForScore") for name in config.architectures or ())


def optional_parameters(config: Any) -> tuple[str, ...]:
    """What the weights need not have: a bias, unless config.json promises one (`score_bias`, formerly `bias`).

    And statistics that config.json holds itself.
    """
    if not is_safe_rlhf(config):
        return ()
    promised = getattr(config, "score_bias", getattr(config, "bias", False))
    bias = () if promised else ("score_head.bias",)
    return bias + (STATISTICS if configured_statistics(config) else ())


def configured_statistics(config: Any) -> tuple[float, float] | None:
    """Mean and variance of the scores in config.json, a number or a list of one each, if both are there."""
    found = []
    for name in ("mean", "var"):
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        found.append(float(value))
    return found[0], found[1]


class ScoreStatistics(nn.Module):
    """Mean and variance of the scores in training; parameters, so that weights without them are found incomplete."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.var = nn.Parameter(torch.ones(1), requires_grad=False)


@functools.cache
def safe_rlhf_class(config_class: type) -> type[PreTrainedModel]:
    """The score model on the trunk that transformers has for a configuration, with Safe RLHF's names of parameters."""
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config_class]

    class ModelForScore(classifier):
        _keep_in_fp32_modules_strict = {"normalizer"}

        def __init__(self, config: Any):
            super().__init__(config)
            features = self.score.in_features  # not always `hidden_size`: OPT-350m projects its features
            del self.score
            self.score_head = nn.Linear(features, 1)  # a bias that the weights lack is 0
            if getattr(config, "do_normalize", False):
                self.normalizer = ScoreStatistics()
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """Statistics that the weights lack are those of config.json."""
            super()._init_weights(module)
            if isinstance(module, ScoreStatistics) and (statistics := configured_statistics(self.config)):
                initialization.constant_(module.mean, statistics[0])
                initialization.constant_(module.var, statistics[1])

        @classmethod
        def from_config(cls, config: Any, **options: Any) -> PreTrainedModel:
            """As transformers' Auto classes have it; their options serve code of others, of which there is none."""
            return cls._from_config(config)

    return ModelForScore
