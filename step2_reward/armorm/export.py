"""One folder in the released model's own format."""

import argparse
import copy
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step2_reward.armorm import figures
from step2_reward.armorm.attributes import Fitted
from step2_reward.armorm.gate import GatedPairs
from utils.engines.engines import gathered_weights
from utils.models.card import figures_of, write_card
from utils.models.export import export_model
from utils.output.files import finished_files, write_json
from utils.process.distributed import is_main, print_main
from utils.process.rank_watch import beat
from utils.scoring.armorm_format import armorm_class

OF_OTHERS = ("score_mean", "score_std", "rating_mean", "rating_std", "zero_divides")  # of a score model's own head


def export_armorm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    gated: GatedPairs,
    fitted: Fitted,
    transform: numpy.ndarray,
    pattern: list[int],
    evaluation: dict[str, Any],
) -> None:
    """Write model, figures and pictures into `--output_dir`; call on every rank.

    Args:
        model: the backbone as a classifier, whose head is left out.
    """
    beat("exporting the model")
    weights = {name: value for name, value in gathered_weights(model).items() if not name.startswith("score.")}
    gate = gathered_weights(gated)
    if is_main():
        config = described(copy.deepcopy(model.config), args, fitted, pattern)
        with torch.device("meta"):
            whole = armorm_class(type(config)).from_config(config).to(model.dtype)
        heads = {"regression_layer.weight": fitted.regression.weights, "reward_transform_matrix": transform}
        weights |= {name: torch.from_numpy(value).float() for name, value in heads.items()} | gate
        with finished_files(args.output_dir) as folder:
            write_json(folder / "evaluation.json", evaluation)
            figures.plot(evaluation, folder)
            export_model(whole, tokenizer, folder, weights)
            write_card(folder, args.output_dir, vars(args) | {"kind": "ArmoRM"}, figures_of(evaluation))
    print_main("\n".join(figures.lines(evaluation)))


def described(config: Any, args: argparse.Namespace, fitted: Fitted, pattern: list[int]) -> Any:
    """The backbone's configuration with the released format's keys, and ours: names, ranges and the gate's pattern."""
    names = fitted.attributes.names
    for name in OF_OTHERS:
        if hasattr(config, name):
            delattr(config, name)
    config.objective, config.kind = args.objective, "armorm"
    config.num_objectives = len(names)
    config.gating_temperature, config.gating_hidden_dim = args.gating_temperature, args.gating_hidden_dim
    config.gating_n_hidden, config.gating_token_pattern = args.gating_n_hidden, pattern
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.rating_ranges = [list(each) for each in fitted.attributes.ranges.values()]
    return config
