"""Reward and cost models of every make, read in one way.

ours            `AutoModelForSequenceClassification` with one label, from step2_reward/main.py
classifiers     of others, with one label or a chosen label of several (its logit is the score); decoders have a head
                on every token, encoders (DeBERTa, ...) one score for the whole text
Safe RLHF       score models in the format of PKU-Alignment/safe-rlhf (beaver-7b-v1.0-reward, -cost): a decoder under
                the names of its language model, a linear `score_head`, and statistics of scores in `normalizer` that
                scores are normalized by where config.json says `do_normalize`

Each reads a dialogue through its own tokenizer and chat template (`Reading`), and its score is that of the token where
its own forward pass reads it. `--score_template` gives a chat template to a tokenizer that has none. No code of a model
folder is run for any of them.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.data.encoding import encode_dialogue, encode_rendered, encode_whole
from utils.data.records import Message
from utils.engines.arrival import whole
from utils.models.checking import check_ids, check_model, tell_once
from utils.models.configs import (
    embedding_rows,
    is_score_model,
    load_config,
    load_tokenizer,
    positions_of,
    same_tokenizer,
    skeleton,
)
from utils.models.loading import load_model, trunk_of
from utils.models.token_head import PooledHead, Rows, TokenHead
from utils.process.errors import UserError
from utils.scoring.armorm_format import (
    BEHIND_REPLY,
    GatedScores,
    armorm_class,
    attribute_names,
    check_armorm,
    cut_for_gate,
    find_pattern,
    is_armorm,
    missing_pattern,
    reads_prompts,
    token_pattern,
)
from utils.scoring.safe_rlhf_format import (
    NORMALIZER_EPSILON,
    SAFE_RLHF_TEMPLATE,
    is_safe_rlhf,
    optional_parameters,
    safe_rlhf_class,
)

SHOWN_LABELS = 8


class Reading(enum.Enum):
    """How a model was trained to read a dialogue.

    It makes a difference where a tokenizer merges across the border of prompt and reply, or begins every text with a
    space, as SentencePiece does.
    """

    APART = "prompt and reply tokenized apart and up to EOS, as in stage 2"
    RENDERED = "the text that the chat template writes, as it is"
    AFTER_BOS = "the same after BOS, as Safe RLHF's tokenizers give it"
    WHOLE = "the same between the special tokens of the tokenizer, such as CLS and SEP"


@dataclass(frozen=True)
class ScoreModel:
    """A reward or cost model with all that its values of a dialogue depend on.

    Several objectives may share a model: then their `module` is the same, and each has a `column` of it.

    Attributes:
        module: (input_ids, attention_mask), both [batch, time] -> [batch, time, columns] float32 scores; told how many
            columns are a prompt, the last of them and what follows may be all that it gives.
        slope, offset: value of an objective, higher is better, = slope · score + offset, in original units.
        padding: the id that the model's own forward pass takes for padding wherever it stands, if there is one.
        positions: tokens that it can read at once; None without a limit.
        rows: ids that it has embeddings for.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase
    slope: float
    offset: float
    reading: Reading
    padding: int | None
    positions: int | None
    rows: int
    column: int = 0

    @property
    def gate_pattern(self) -> list[int]:
        """Ids that every dialogue has to have, of a model with a gate; else none."""
        return self.module.pattern if isinstance(self.module, GatedScores) else []

    @property
    def attributes(self) -> list[str]:
        """Names of what the score is made of, where it is that of a gate; else none."""
        is_gated = isinstance(self.module, GatedScores) and self.module.columns[self.column] is None
        return self.module.attributes if is_gated else []

    @property
    def scores_tokens(self) -> bool:
        """Whether every token has a score of its own: such a model can start a critic."""
        return isinstance(self.module, TokenHead)

    @property
    def head(self) -> nn.Linear:
        """Its head, of a model that scores tokens."""
        head = self.module.head
        return head.heads[self.column] if isinstance(head, Rows) else head

    def values(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores of the module -> objective values in original units; [..., columns] -> [...]."""
        return self.slope * scores[..., self.column] + self.offset

    def contributions(self, explained: torch.Tensor) -> dict[str, list[float]]:
        """What every attribute contributes to objective values; together they are the value without `offset`.

        Args:
            explained: [n, columns + m], see `GatedScores.explained`.
        """
        names = self.attributes
        return dict(zip(names, (self.slope * explained[:, -len(names) :]).T.tolist(), strict=True))

    def encode(
        self, messages: Sequence[Message], response: str, finished: bool, source: str = "a dialogue"
    ) -> tuple[list[int], bool]:
        """Ids of a dialogue up to the token with the score, and whether its beginning was cut off for want of room.

        A response that is not `finished` ends where it was cut off. A model with one score for the whole text keeps the
        first token, which it may take the score from.

        Args:
            source: the place of the dialogue, for error messages.

        Raises:
            UserError: no chat template, one that refuses the turns, ids that the model does not know, or no place for
                its gate to read.
        """
        try:
            ids = read_dialogue(self.tokenizer, self.reading, messages, response, finished)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{source}: holds the token {token!r} (id {max(ids)}), for which the score model"
                f" {self.tokenizer.name_or_path} has no embedding ({self.rows} rows)"
            )
        if self.reading is Reading.RENDERED:
            ids = up_to_score(ids, self.padding)
        at = find_pattern(ids, self.gate_pattern) if self.gate_pattern else 0
        if at is None:
            raise UserError(f"{source}: {missing_pattern(self.tokenizer, self.gate_pattern)}")
        if self.positions is None or len(ids) <= self.positions:
            return ids, False
        if self.gate_pattern:
            return cut_for_gate(ids, at + len(self.gate_pattern), self.positions), True
        first = ids[:1] if self.reading is Reading.WHOLE else []
        return first + ids[len(ids) - self.positions + len(first) :], True

    def encode_all(
        self,
        messages: Sequence[Sequence[Message]],
        responses: Sequence[str],
        finished: Sequence[bool],
        sources: Sequence[str],
    ) -> tuple[list[list[int]], list[bool]]:
        """`encode`, of one dialogue after another."""
        found = [self.encode(*dialogue) for dialogue in zip(messages, responses, finished, sources, strict=True)]
        return [ids for ids, _ in found], [cut for _, cut in found]


def up_to_score(ids: list[int], padding: int | None) -> list[int]:
    """The ids up to the last one that is not `padding`, which transformers' classifiers take the score from.

    What follows changes nothing there. Of padding alone they read the first.
    """
    last = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] != padding), 0)
    return ids[: last + 1]


def read_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    messages: Sequence[Message],
    response: str,
    finished: bool = True,
) -> list[int]:
    """Ids of prompt and response.

    Raises:
        UserError: no chat template, or one that refuses the turns.
    """
    if reading is Reading.WHOLE:
        return encode_whole(tokenizer, messages, response, finished)
    if reading is Reading.APART:
        return encode_dialogue(tokenizer, messages, response, finished)
    ids = encode_rendered(tokenizer, messages, response, finished)
    return [tokenizer.bos_token_id, *ids] if reading is Reading.AFTER_BOS else ids


@dataclass(frozen=True)
class Use:
    """What an objective makes of a score model.

    Attributes:
        flag: of the command line, which names the objective.
        kind: "reward" or "cost".
        label: index or name of the label of a classifier with several.
    """

    flag: str
    kind: str
    label: str | None = None


def load_score_models(
    path: str, uses: Sequence[Use], template: str | None = None, dtype: torch.dtype = torch.float32
) -> list[ScoreModel]:
    """A reward or cost model of any make, for every use of it, on the CPU or where it arrives (utils.engines.arrival).

    Args:
        template: file of the chat template, in place of the tokenizer's.

    Raises:
        UserError: see `check_score_model`; the weights cannot be read, or hold no finite statistics.
    """
    flag = uses[0].flag
    config = load_config(path, flag)
    labels = [check_config(config, path, use.flag, use.kind, use.label) for use in uses]
    tokenizer = load_score_tokenizer(path, flag, template)
    model = load_model(loader_of(config), path, flag, dtype, new=optional_parameters(config))
    calibrations = [calibration(model, use.kind, path, use.flag) for use in uses]
    if is_armorm(config):
        pattern = token_pattern(config, tokenizer, path, flag) if None in labels else []
        module = GatedScores(model, trunk_of(model), labels, pattern)
    elif has_token_head(model):
        rows = [row_of(head_of(model), label) for label in labels]
        module = TokenHead(trunk_of(model), rows[0] if len(rows) == 1 else Rows(rows))
    else:
        module = PooledHead(model, labels)
    return [
        ScoreModel(
            module,
            tokenizer,
            slope,
            offset,
            reading_of(model, tokenizer),
            padding=None if is_safe_rlhf(config) else config.get_text_config().pad_token_id,
            positions=room_of(config, tokenizer, module),
            rows=embedding_rows(model),
            column=column,
        )
        for column, (slope, offset) in enumerate(calibrations)
    ]


def check_score_model(path: str, flag: str, kind: str, label: str | None = None, template: str | None = None) -> None:
    """Check configuration, tokenizer and the headers of the weights before any weight is read.

    Raises:
        UserError: no score model of a known make, several labels of which none is chosen, a label that is not there,
            a cost model as a reward model or the other way round, no chat template that can write a dialogue, no EOS
            for a model that needs it; or see `utils.models.checking.check_model`; names `flag`.
    """
    config = load_config(path, flag)
    check_config(config, path, flag, kind, label)
    tokenizer = load_score_tokenizer(path, flag, template)
    model = check_model(loader_of(config), config, path, flag, new=optional_parameters(config))
    reading = reading_of(model, tokenizer)
    if reading is Reading.APART and tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {path}: the tokenizer has no EOS token")
    try:
        written = read_dialogue(tokenizer, reading, [{"role": "user", "content": "?"}], "!")
    except UserError as error:
        raise UserError(f"{flag if template is None else template_flag(flag, template)}: {error}") from None
    check_ids(model, tokenizer, written, path, flag)
    if is_armorm(config) and label is None:
        pattern = token_pattern(config, tokenizer, path, flag)
        if find_pattern(written, pattern) is None:
            raise UserError(f"{flag} {path}: {missing_pattern(tokenizer, pattern)}")
        if not reads_prompts(tokenizer, pattern):
            tell_once(f"note: {flag} {path}: {BEHIND_REPLY}, as in the released code")


def load_score_tokenizer(path: str, flag: str, template: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a score model, with the chat template of a file, or Safe RLHF's for its models that have none.

    Raises:
        UserError: no chat template; the file cannot be read; or see `utils.models.configs.load_tokenizer`.
    """
    tokenizer = load_tokenizer(path, flag, needs_eos=False)
    if template is not None:
        try:
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"{template_flag(flag, template)}: {reason}") from None
    elif tokenizer.chat_template is None and is_safe_rlhf(load_config(path, flag)):
        tokenizer.chat_template = SAFE_RLHF_TEMPLATE
    elif tokenizer.chat_template is None:
        raise UserError(
            f"{flag} {path}: the tokenizer has no chat template; {template_flag(flag, 'FILE')} gives it one (Jinja)"
        )
    return tokenizer


def template_flag(flag: str, file: str) -> str:
    """The words of the command line that give a template to the objective of `flag`."""
    return f"--score_template {flag.split()[-1]}={file}"


def shares_tokens_of(
    policy_tokenizer: PreTrainedTokenizerBase, path: str, flag: str, template: str | None = None
) -> bool:
    """Whether a score model has a value for every token of the policy's: the tokenizers agree, its head is on each."""
    config = load_config(path, flag)
    if is_armorm(config) or not same_tokenizer(load_score_tokenizer(path, flag, template), policy_tokenizer):
        return False
    return has_token_head(skeleton(loader_of(config), config, path, flag))


def check_config(config: Any, path: str, flag: str, kind: str, label: str | None) -> int | None:
    """Index of the label that is the score; None for the gated score of a model that has one.

    Raises:
        UserError: see `check_score_model`.
    """
    if not is_score_model(config) or config.is_encoder_decoder:
        if not config.architectures:
            raise UserError(f"{flag} {path}: config.json names no architectures (LlamaForSequenceClassification or so)")
        found = config.architectures[0]
        raise UserError(f"{flag} {path}: {found} is not a reward or cost model (train one with step2_reward/main.py)")
    mean = getattr(config, "score_mean", 0.0)
    if not isinstance(mean, int | float) or not math.isfinite(mean):
        raise UserError(f"{flag} {path}: score_mean in config.json is no finite number: {mean!r}")
    if is_armorm(config):
        check_armorm(config, path, flag)
        return None if label is None else label_index(attribute_names(config), label, path, flag)
    if not is_safe_rlhf(config):
        labels = [config.id2label.get(index, f"LABEL_{index}") for index in range(config.num_labels)]
        return label_index(labels, label, path, flag)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{flag} {path}: no score model of Safe RLHF is known on {config.model_type}")
    score_type, dimensions = getattr(config, "score_type", "reward"), getattr(config, "score_dim", 1)
    if score_type != kind:
        advice = f" (it serves --{score_type}_model)" if score_type in ("reward", "cost") else ""
        raise UserError(f"{flag} {path}: score_type in config.json is {score_type!r}, not {kind!r}{advice}")
    if dimensions != 1:
        raise UserError(f"{flag} {path}: the score model has {dimensions} labels (score_dim), one is needed")
    return label_index(["score"], label, path, flag)


def label_index(labels: list[str], label: str | None, path: str, flag: str) -> int:
    """Index of the chosen label, by its name or number; of the only one if none is chosen.

    Raises:
        UserError: there are several and none is chosen, or there is no such label.
    """
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
    if label is None and len(labels) == 1:
        return 0
    if label is None:
        raise UserError(
            f"{flag} {path}: the score model has {len(labels)} labels, one is needed: --score_label"
            f" {flag.split()[-1]}=LABEL chooses of {shown}"
        )
    if label in labels:
        return labels.index(label)
    if label.isdecimal() and int(label) < len(labels):
        return int(label)
    raise UserError(f"--score_label {flag.split()[-1]}={label}: {path} has no such label (there are {shown})")


def head_of(model: PreTrainedModel) -> nn.Module | None:
    """The head that scores hidden states, if the architecture has one on every token."""
    return getattr(model, "score_head", None) or getattr(model, "score", None)


def has_token_head(model: PreTrainedModel) -> bool:
    return isinstance(head_of(model), nn.Linear)


def row_of(head: nn.Linear, index: int) -> nn.Linear:
    """The head of one label of a classifier."""
    if head.out_features == 1:
        return head
    row = nn.Linear(head.in_features, 1, bias=head.bias is not None, dtype=head.weight.dtype)
    with whole(*head.parameters()):
        row.weight.data.copy_(head.weight.data[index : index + 1])
        if head.bias is not None:
            row.bias.data.copy_(head.bias.data[index : index + 1])
    return row


def calibration(model: PreTrainedModel, kind: str, path: str, flag: str) -> tuple[float, float]:
    """(slope, offset) of an objective's value as a function of the score head's output.

    A reward is centered by the mean stored in its configuration, if there is one (Bradley-Terry leaves the origin
    free); a cost keeps its origin, which divides safe from harmful, and changes its sign. Safe RLHF normalizes
    rewards to zero mean and unit variance, and costs to unit variance alone.

    Raises:
        UserError: the statistics in the weights are no numbers to normalize by.
    """
    mean, std = 0.0, 1.0
    if (statistics := getattr(model, "normalizer", None)) is not None:
        with whole(statistics.mean, statistics.var):
            mean, variance = statistics.mean.item(), statistics.var.item()
        if not (math.isfinite(mean) and 0 < variance < math.inf):
            raise UserError(f"{flag} {path}: normalizer.mean {mean} and normalizer.var {variance} normalize nothing")
        std = math.sqrt(variance) + NORMALIZER_EPSILON
    if kind == "cost":
        return -1.0 / std, 0.0
    return 1.0 / std, -mean / std - getattr(model.config, "score_mean", 0.0)


def reading_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """How a model reads dialogues."""
    if is_armorm(model.config):
        return Reading.RENDERED
    if not has_token_head(model):
        return Reading.WHOLE
    if is_ours(model.config):
        return Reading.APART
    after_bos = tokenizer.chat_template == SAFE_RLHF_TEMPLATE and tokenizer.bos_token_id is not None
    return Reading.AFTER_BOS if after_bos else Reading.RENDERED


def is_ours(config: Any) -> bool:
    """Whether stage 2 made the model: it leaves the objective in the configuration, and at its end the scores' mean."""
    return hasattr(config, "score_mean") or hasattr(config, "objective")


def room_of(config: Any, tokenizer: PreTrainedTokenizerBase, module: nn.Module) -> int | None:
    """Tokens a model can read at once; encoders may count some of their positions for padding."""
    positions = positions_of(config)
    if positions is None or isinstance(module, TokenHead | GatedScores):
        return positions
    return min(positions, tokenizer.model_max_length)


# --- formats of others


def loader_of(config: Any) -> Any:
    """The class whose `from_config` and `from_pretrained` make the model of a configuration."""
    if is_armorm(config):
        return armorm_class(type(config))
    return safe_rlhf_class(type(config)) if is_safe_rlhf(config) else AutoModelForSequenceClassification
