"""Write what a dry run needs of models that are not trained yet: their configuration and tokenizer, without weights.

    python utils/launch/stand_in.py --model BASE --policy FOLDER --reward_model helpfulness=FOLDER --cost_model ...

They are what stages 1 and 2 would export of models that start from BASE.
"""

import argparse
import copy
import gc
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import AutoModelForSequenceClassification

from utils.cli.arguments import Parser
from utils.cli.types import named_value
from utils.models.configs import load_config, load_tokenizer, skeleton
from utils.process.errors import run_main


def main() -> None:
    args = parse_args()
    config = load_config(args.model, "--model")
    tokenizer = load_tokenizer(args.tokenizer or args.model, "--tokenizer" if args.tokenizer else "--model")
    written = [(config, args.policy)]
    for kind, named in (("reward", args.reward_model), ("cost", args.cost_model)):
        written += [(score_config(config, args.model, name, kind), folder) for name, folder in named]
    for described, folder in written:
        described.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Write the configuration and tokenizer of models that are not trained yet")
    parser.add_argument("--model", required=True, metavar="PATH", help="model that they will be trained from")
    parser.add_argument("--tokenizer", metavar="PATH", help="their tokenizer, if not that of --model")
    parser.add_argument("--policy", required=True, metavar="FOLDER", help="where a policy goes")
    for flag in ("--reward_model", "--cost_model"):
        parser.add_argument(
            flag, type=named_value, action="append", default=[], metavar="NAME=FOLDER", help="where a score model goes"
        )
    return parser.parse_args()


def score_config(config: Any, path: str, objective: str, kind: str) -> Any:
    """The configuration of a score model on the decoder that `config`, of the model at `path`, describes."""
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.architectures = [type(skeleton(AutoModelForSequenceClassification, config, path, "--model")).__name__]
    config.objective, config.kind = objective, kind
    config.score_mean, config.score_std = 0.0, 1.0  # of scores that nobody knows yet
    return config


if __name__ == "__main__":
    run_main(main)
