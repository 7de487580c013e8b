"""ArmoRM's score models (arXiv 2406.12845): attributes, a gate that reads the prompt, their class and their scores.

An attribute's reward is r_k = w_k · h, of the hidden state h at the end of a dialogue. A gate g of the prompt, its
weights ≥ 0 and their sum a learned scale, weighs the rewards after a linear transform T that takes verbosity out of
them: score = Σ_k g_k (r T)_k = c · r with c = g Tᵀ. The gate reads the hidden state at the first token of the last
occurrence of a pattern: the tokens that close the user's turn and open the reply.

The released folder (RLHFlow/ArmoRM-Llama3-8B-v0.1, LlamaForRewardModelWithGating) brings program code, which is not
run. Ours, for other decoders and other attributes: the names of the attributes are config.json's labels, the pattern
its `gating_token_pattern`; where it has none, the pattern is what the chat template writes there.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from utils.data.encoding import encode_rendered, render_dialogue
from utils.data.formats.rated import ARMORM
from utils.data.records import Message
from utils.models.loading import position_ids_from_mask
from utils.process.errors import UserError

ARCHITECTURE = "ForRewardModelWithGating"  # how names of such classes end
BEHIND_REPLY = "the chat template opens a reply after every turn: the gate reads behind the reply, not the prompt"
# Turns by which it is seen what a chat template writes between them, and with what that merges.
QUESTIONS, REPLIES = ("How?", "yes", "2", "No way\n", "ok )"), ("Well.", "no", "7", "\nSo", "- a")
# Defaults of the released model, and of its gate in training.
TEMPERATURE, HIDDEN, LAYERS = 10.0, 1024, 3


def is_armorm(config: Any) -> bool:
    """Whether config.json names such a score model."""
    return any(name.endswith(ARCHITECTURE) for name in config.architectures or ())


def check_armorm(config: Any, path: str, flag: str) -> None:
    """Raises: UserError: config.json does not say how many attributes there are; no such trunk; no temperature."""
    count = getattr(config, "num_objectives", None)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{flag} {path}: num_objectives in config.json is no number of attributes: {count!r}")
    temperature = getattr(config, "gating_temperature", TEMPERATURE)
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise UserError(f"{flag} {path}: gating_temperature in config.json is no number above 0: {temperature!r}")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{flag} {path}: no score model with a gate is known on {config.model_type}")


def attribute_names(config: Any) -> list[str]:
    """The attributes, in the order of the rewards: config.json's labels, or those of the released model.

    Where several are called the same, their numbers are added.
    """
    count = config.num_objectives
    labels = [config.id2label.get(index, f"LABEL_{index}") for index in range(count)]
    labels = [label if labels.count(label) == 1 else f"{label} ({index})" for index, label in enumerate(labels)]
    unnamed = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    return list(ARMORM) if unnamed and count == len(ARMORM) else labels


# --- the formulas


def coefficients(gate: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """c = g Tᵀ, what each attribute's reward counts in the score; [..., m] and [m, m] -> [..., m]."""
    return gate @ transform.T


def contributions(rewards: torch.Tensor, gate: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """c_k r_k, the part of the score that is an attribute's; [..., m] each and [m, m] -> [..., m]."""
    return coefficients(gate, transform) * rewards


def gated_score(rewards: torch.Tensor, gate: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Σ_k g_k (r T)_k; [..., m] each and [m, m] -> [...]."""
    return contributions(rewards, gate, transform).sum(dim=-1)


def find_pattern(ids: Sequence[int], pattern: Sequence[int]) -> int | None:
    """Index of the first token of the last occurrence of `pattern` in `ids`; None if there is none."""
    pattern = list(pattern)
    starts = range(len(ids) - len(pattern), -1, -1)
    return next((start for start in starts if list(ids[start : start + len(pattern)]) == pattern), None)


def pattern_positions(input_ids: torch.Tensor, attention_mask: torch.Tensor, pattern: Sequence[int]) -> torch.Tensor:
    """`find_pattern` of every row without its padding, 0 where there is none; [b, t] int64 each -> [b] int64."""
    if input_ids.shape[1] < len(pattern):
        return input_ids.new_zeros(len(input_ids))
    found = input_ids.unfold(1, len(pattern), 1) == input_ids.new_tensor(pattern)  # [b, t - p + 1, p]
    found = (found & (attention_mask.unfold(1, len(pattern), 1) > 0)).all(dim=-1)
    return torch.arange(found.shape[1], device=found.device).mul(found).amax(dim=-1)


# --- modules


class FloatLinear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights and inputs are kept in."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(hidden.float(), self.weight.float(), bias)


class GatingNetwork(nn.Module):
    """The gate: hidden states of prompts to weights of the attributes.

    Attributes:
        logit_scale: [1], the sum of the weights; positive.
        dropout: share of the hidden units that are dropped in training.
    """

    def __init__(
        self,
        features: int,
        attributes: int,
        hidden: int = HIDDEN,
        layers: int = LAYERS,
        temperature: float = TEMPERATURE,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = [features, *[hidden] * layers, attributes]
        self.layers = nn.ModuleList(FloatLinear(*pair) for pair in zip(sizes, sizes[1:], strict=False))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature, self.dropout = temperature, dropout

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., features] -> [..., attributes] float32."""
        *inner, last = self.layers
        for layer in inner:
            hidden = functional.dropout(layer(hidden).relu(), self.dropout, self.training)
        return (last(hidden) / self.temperature).softmax(dim=-1) * self.logit_scale.float()


@functools.cache
def armorm_class(config_class: type) -> type[PreTrainedModel]:
    """The score model on the trunk that transformers has for a configuration, with the released names of parameters."""
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[config_class]

    class RewardModelWithGating(classifier):
        def __init__(self, config: Any):
            super().__init__(config)
            features = self.score.in_features  # not always `hidden_size`: OPT-350m projects its features
            del self.score
            self.regression_layer = FloatLinear(features, config.num_objectives, bias=False)
            self.reward_transform_matrix = nn.Parameter(torch.eye(config.num_objectives), requires_grad=False)
            self.gating = GatingNetwork(
                features,
                config.num_objectives,
                getattr(config, "gating_hidden_dim", HIDDEN),
                getattr(config, "gating_n_hidden", LAYERS),
                getattr(config, "gating_temperature", TEMPERATURE),
            )
            self.post_init()

        @classmethod
        def from_config(cls, config: Any, **options: Any) -> PreTrainedModel:
            """As transformers' Auto classes have it; their options serve code of others, of which there is none."""
            return cls._from_config(config)

    RewardModelWithGating.__name__ = classifier.__name__.replace("ForSequenceClassification", ARCHITECTURE)
    return RewardModelWithGating


class GatedScores(nn.Module):
    """Scores of every token: the gated one, an attribute's reward, or several of these.

    Attributes:
        columns: indices of attributes, None for the gated score.
        pattern: ids that the gate looks for; empty where nothing asks for the gate.
        attributes: names, in the order of the rewards.
    """

    def __init__(self, model: PreTrainedModel, trunk: nn.Module, columns: Sequence[int | None], pattern: Sequence[int]):
        super().__init__()
        self.trunk, self.regression, self.gating = trunk, model.regression_layer, model.gating
        self.transform = model.reward_transform_matrix
        self.columns, self.pattern = list(columns), list(pattern)
        self.attributes = attribute_names(model.config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int = 0) -> torch.Tensor:
        """[batch, time] ids and mask -> [batch, time, columns] float32."""
        if not self.pattern:
            return self.regression(self.hidden(input_ids, attention_mask))[..., self.columns]
        rewards, gate = self.rewards_and_gate(input_ids, attention_mask)
        return self.chosen(rewards, gated_score(rewards, gate[:, None], self.transform.float()))

    def explained(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`forward`, and behind its columns what every attribute contributes to the gated score.

        [batch, time] ids and mask -> [batch, time, columns + m] float32.
        """
        rewards, gate = self.rewards_and_gate(input_ids, attention_mask)
        parts = contributions(rewards, gate[:, None], self.transform.float())
        return torch.cat([self.chosen(rewards, parts.sum(dim=-1)), parts], dim=-1)

    def chosen(self, rewards: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """The columns, of rewards [..., m] and gated scores [...]; [..., columns]."""
        return torch.stack([score if k is None else rewards[..., k] for k in self.columns], dim=-1)

    def rewards_and_gate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token the rewards, [batch, time, m], and of every row the gate's weights, [batch, m]; float32."""
        hidden = self.hidden(input_ids, attention_mask)
        at = pattern_positions(input_ids, attention_mask, self.pattern)
        gate = self.gating(hidden[torch.arange(len(at), device=at.device), at])
        return self.regression(hidden), gate

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, time] ids and mask -> [batch, time, features]."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs["position_ids"] = position_ids_from_mask(attention_mask)
        return self.trunk(**inputs, use_cache=False).last_hidden_state


# --- the pattern


def token_pattern(config: Any, tokenizer: PreTrainedTokenizerBase, path: str, flag: str) -> list[int]:
    """The ids that close the user's turn and open the reply.

    Raises:
        UserError: config.json holds no ids, or the chat template writes nothing of its own there.
    """
    given = getattr(config, "gating_token_pattern", None)
    if given is None:
        return template_pattern(tokenizer, path, flag)
    if not (isinstance(given, list) and given and all(isinstance(each, int) for each in given)):
        raise UserError(f"{flag} {path}: gating_token_pattern in config.json is no list of ids: {given!r}")
    return given


def template_pattern(tokenizer: PreTrainedTokenizerBase, path: str, flag: str) -> list[int]:
    """The ids of what a chat template writes between a user's words and a reply; see `token_pattern`.

    The longest run of them that is in every dialogue, and as often, whatever they may merge with at its ends.

    Raises:
        UserError: there is none; no chat template, or one that refuses the turns.
    """
    before = render_dialogue(tokenizer, user_turn(QUESTIONS[0]), REPLIES[0]).rpartition(REPLIES[0])[0]
    between = before.rpartition(QUESTIONS[0])[2]
    ids = tokenizer(between, add_special_tokens=False)["input_ids"] if between else []
    asked = itertools.product(QUESTIONS, REPLIES)
    dialogues = [encode_rendered(tokenizer, user_turn(question), reply) for question, reply in asked]
    runs = [ids[start:end] for start in range(len(ids)) for end in range(start + 1, len(ids) + 1)]
    counts = [{count_pattern(dialogue, run) for dialogue in dialogues} for run in runs]
    kept = [run for run, found in zip(runs, counts, strict=True) if len(found) == 1 and 0 not in found]
    if not kept:
        raise UserError(
            f"{flag} {path}: the chat template writes nothing of its own between a user's turn and the reply, where the"
            " gate reads"
        )
    return max(kept, key=len)


def user_turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def count_pattern(ids: Sequence[int], pattern: Sequence[int]) -> int:
    """How often the pattern is in `ids`."""
    starts = range(len(ids) - len(pattern) + 1)
    return sum(list(ids[start : start + len(pattern)]) == list(pattern) for start in starts)


def reads_prompts(tokenizer: PreTrainedTokenizerBase, pattern: Sequence[int]) -> bool:
    """Whether the last occurrence of the pattern comes before the reply: some templates open one after every turn."""
    ids = encode_rendered(tokenizer, user_turn(QUESTIONS[0]), REPLIES[0])
    at = find_pattern(ids, pattern)
    return at is None or at + len(pattern) < len(ids)


def cut_for_gate(ids: list[int], prompt: int, room: int) -> list[int]:
    """At most `room` tokens of a dialogue whose first `prompt` tokens end in the gate's pattern: the end of these, half
    of the room where the reply needs the rest, and the end of the reply."""
    reply = len(ids) - prompt
    kept = min(prompt, max(room // 2, room - reply))
    return ids[prompt - kept : prompt] + ids[len(ids) - min(reply, room - kept) :]


def missing_pattern(tokenizer: PreTrainedTokenizerBase, pattern: Sequence[int]) -> str:
    """What to say of a dialogue without it."""
    shown = "".join(tokenizer.convert_ids_to_tokens(list(pattern)))
    return f"the dialogue lacks {shown!r} (ids {list(pattern)}), at which the gate of the score model reads the prompt"
