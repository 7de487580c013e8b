"""What the kinds of score models share: the score at a reply's last token, and what a kind has to say of itself."""

import abc
import argparse
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.batching import right_pad
from utils.data.encoding import Encoded
from utils.engines.engines import Engine
from utils.models.checking import check_dialogues
from utils.models.configs import load_tokenizer
from utils.models.loading import position_ids_from_mask, score_tokens
from utils.process.distributed import device, print_main
from utils.process.errors import Problems
from utils.supervised.examples import Examples, Read
from utils.supervised.steps import per_example


class LastTokenScore(nn.Module):
    """A score model that reads the scores at one given position of each row."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """[b, t] ids and mask, [b] positions -> [b, labels] float32 scores."""
        scores = score_tokens(self.model, input_ids, attention_mask, position_ids_from_mask(attention_mask))
        return scores[torch.arange(len(last), device=last.device), last]


class ScoreTraining(abc.ABC):
    """One kind of score model: its data, its loss, and its figures on held-out data.

    Attributes:
        labels: names of the outputs; empty for the one of a reward or cost.
        shown: figures of an optimizer step that progress lines show.
        engine: of a `LastTokenScore`, once there is one.
    """

    labels: tuple[str, ...] = ()
    shown: ClassVar[tuple[str, ...]]
    engine: Engine

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def begin(self, engine: Engine, pad_token_id: int) -> None:
        """From here on there are scores."""
        self.engine, self.pad_token_id = engine, pad_token_id

    def scores(self, examples: list[Encoded]) -> torch.Tensor:
        """Raw scores at the end of every sequence, from one forward pass over all; [b, sequences, labels] float32."""
        sequences = [example.sequences for example in examples]
        rows = [row for column in zip(*sequences, strict=True) for row in column]
        ids, mask = (tensor.to(device()) for tensor in right_pad(rows, self.pad_token_id))
        scores = self.engine(ids, mask, mask.sum(dim=-1) - 1)  # [sequences * b, labels]
        return scores.view(-1, len(examples), scores.shape[-1]).transpose(0, 1)

    def score_table(self, examples: list[Encoded]) -> torch.Tensor:
        """Raw scores of any number of examples, the same on every rank; [n, sequences, labels] float64 on the CPU."""
        shape: list[int] = []

        def flat(batch: list[Encoded]) -> torch.Tensor:
            scores = self.scores(batch)
            shape[:] = scores.shape[1:]
            return scores.flatten(1)

        table = per_example(self.engine, examples, self.args.per_device_eval_batch_size, flat)
        return table[:, :-1].view(len(examples), *shape)

    def sums(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """`Task.sums`: of the measures of examples."""
        return {name: values.sum() for name, values in self.measures(examples).items()}

    @abc.abstractmethod
    def load(self, spec: str, seed: int) -> Read:
        """The records of `--data`."""

    @abc.abstractmethod
    def load_held_out(self, spec: str, seed: int) -> Read:
        """The records of `--validation_data`."""

    @abc.abstractmethod
    def take_note(self, train: Examples) -> None:
        """Print what there is to say of the training data."""

    @abc.abstractmethod
    def settle(self, train: Examples, held_out: Examples) -> None:
        """Take from the training data what the model and its loss depend on.

        Raises:
            UserError: there is nothing to train or to validate on.
        """

    @abc.abstractmethod
    def units(self, example: Encoded) -> float:
        """`Task.units`."""

    @abc.abstractmethod
    def measures(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        """Loss and figures, example by example; [b] each."""

    @abc.abstractmethod
    def validate(self, held_out: Examples) -> dict[str, float]:
        """`Task.validate`."""

    def describe(self, config: Any) -> None:
        """Say in a model's configuration what it is, before it is trained."""
        config.objective, config.kind = self.args.objective, self.args.kind

    def finish(self, config: Any, train: Examples) -> None:  # noqa: B027 (some kinds need nothing)
        """Add what is known of a trained one."""

    @abc.abstractmethod
    def evaluate(self, held_out: Examples) -> dict[str, Any]:
        """Figures of the exported model with 95% intervals, for evaluation.json; the same on every rank."""

    @abc.abstractmethod
    def lines(self, evaluation: dict[str, Any]) -> list[str]:
        """The same for people."""

    @abc.abstractmethod
    def plot(self, evaluation: dict[str, Any], path: Path) -> None:
        """The calibration as a picture."""


def find_tokenizer(args: argparse.Namespace, problems: Problems) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, which can write a dialogue; None where there is a problem with it."""
    tokenizer = problems.take(load_tokenizer, args.model_name_or_path, "--model_name_or_path")
    usable = problems.passes(check_dialogues, tokenizer, "--model_name_or_path")
    return dedicated_pad(tokenizer) if usable else None


def dedicated_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Pad with <unk> where the tokenizer would pad with EOS.

    transformers pools a score at the last token that is not padding. If EOS were padding, that would not be
    the final EOS, at which the score is trained.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id in (None, tokenizer.eos_token_id):
            print_main(
                "note: the tokenizer has no token to pad with but EOS; transformers' own forward will pool"
                " the score one token before the final EOS, this project scores the EOS"
            )
        else:
            tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
