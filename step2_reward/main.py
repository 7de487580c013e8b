"""Step 2: train the reward model or the cost model of one objective on preference pairs.

    python step2_reward/main.py --help                              one rank
    deepspeed --num_accelerators 2 step2_reward/main.py --help      several ranks

The result scores the last token of a response. Both kinds are exported in the same form; that a reward is
better when high and a cost when low is said in the configuration.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step2_reward import calibration
from step2_reward.losses import cost_loss, reward_loss
from utils.cli.arguments import (
    OF_THE_RANKS,
    Parser,
    add_checkpoint_arguments,
    add_data_arguments,
    add_deepspeed_arguments,
    add_dry_run_arguments,
    add_supervised_arguments,
    check_deepspeed_arguments,
)
from utils.cli.types import non_negative_float, positive_int, safe_name
from utils.data import load_pairs
from utils.data.batching import evenly_spread, right_pad
from utils.data.encoding import Encoded
from utils.data.registry import preference_labels
from utils.engines.arrival import arriving
from utils.engines.engines import Engine, engine_config, make_training_engine
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_decoder, check_dialogues
from utils.models.configs import DTYPES, allow, load_tokenizer
from utils.models.loading import new_score_model, position_ids_from_mask, score_tokens
from utils.output.files import check_output
from utils.process.distributed import (
    device,
    init_distributed,
    print_main,
    seed_everything,
    shutdown_distributed,
)
from utils.process.errors import Problems, run_main
from utils.process.rank_watch import watch_ranks
from utils.supervised.examples import read_examples
from utils.supervised.run import Run, export, note_steps, print_summary, print_supervised_dry_run, train
from utils.supervised.steps import per_example, steps_per_epoch
from utils.supervised.task import Task

PREFERENCE_LABELS = {"reward": "better", "cost": "safer"}  # defaults of --preference_label by kind


def main() -> None:
    # Arguments, data, and everything that can be checked before a model is built.
    args = parse_args()
    problems = Problems(collecting=args.dry_run)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    architecture = problems.take(check_decoder, args.model_name_or_path, "--model_name_or_path")
    tokenizer = find_tokenizer(args, problems)
    load = lambda spec, seed: load_pairs(spec, args.preference_label, seed)
    pairs, held_out = read_examples(args, tokenizer, load, architecture, problems)
    problems.report()
    note_steps(args, pairs.total)
    if args.kind == "cost" and not has_safety_labels(pairs):
        print_main("note: no safety labels in --data: the cost is ordered, but its zero divides nothing")
    if args.dry_run:
        return print_supervised_dry_run(args, "reward", architecture, pairs, held_out)
    check_output(args.output_dir, args.fresh)

    # Engine.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    run = Run(args, "reward", (pairs, held_out), tokenizer)
    with arriving(engine_config(args)):
        model = new_score_model(args.model_name_or_path, "--model_name_or_path", DTYPES[args.dtype])
    model.config.objective, model.config.kind = args.objective, args.kind
    total_steps = steps_per_epoch(len(pairs), args) * args.num_train_epochs
    engine = make_training_engine(LastTokenScore(model), args, args.learning_rate, total_steps)
    scorer = PairScorer(engine, tokenizer.pad_token_id, args)

    # Training, with figures on held-out pairs before, after every epoch and of what is exported.
    task = Task(
        train=pairs,
        units=lambda pair: 1,
        sums=lambda batch: {name: values.sum() for name, values in scorer.measures(batch).items()},
        validate=lambda: mean_figures(scorer, held_out),
        shown=("accuracy",),
    )
    outcome = train(engine, model, args, task, run)

    # The score model, with the mean and spread of its scores on what it was trained on.
    describe_scores(model, scorer, pairs, args)
    evaluation = evaluate(scorer, held_out, args) | {"epoch": outcome.exported_epoch}
    export(
        model,
        tokenizer,
        args,
        evaluation,
        lambda folder: calibration.plot(panels(evaluation), folder / "calibration.png"),
    )
    print_main("\n".join(evaluation_lines(evaluation)))
    run.finish()
    print_summary(args, outcome, len(pairs), "accuracy")
    shutdown_distributed()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Step 2: train one reward or cost model on preference pairs.", facts=OF_THE_RANKS)
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--objective", required=True, type=safe_name, metavar="NAME", help="name of the objective, kept with the model"
    )
    group.add_argument(
        "--kind",
        choices=tuple(PREFERENCE_LABELS),
        required=True,
        help="reward: higher is better, Bradley-Terry; cost: lower is better, with the sign of"
        " the safety labels (Safe RLHF)",
    )
    group.add_argument(
        "--preference_label",
        choices=tuple(preference_labels()),
        help="which of the data's preferences orders a pair (default: better for a reward, safer for a cost)",
    )
    group.add_argument(
        "--score_regularization",
        type=non_negative_float,
        default=0.001,
        help="weight of the mean square of the scores in the loss",
    )
    group.add_argument(
        "--statistics_pairs",
        type=positive_int,
        default=2000,
        help="training pairs, evenly spread, that the scores' mean and spread are taken on",
    )
    add_data_arguments(parser, "preference pairs")
    add_supervised_arguments(parser)
    add_checkpoint_arguments(parser, 200, "optimizer steps")
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    args = parser.parse_args(argv)
    allow(args)
    args.preference_label = args.preference_label or PREFERENCE_LABELS[args.kind]
    return args


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


class LastTokenScore(nn.Module):
    """A score model that reads the score at one given position of each row."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """[b, t] ids and mask, [b] positions -> [b] float32 scores."""
        scores = score_tokens(self.model, input_ids, attention_mask, position_ids_from_mask(attention_mask))
        return scores.gather(1, last.unsqueeze(1)).squeeze(1)


def has_safety_labels(pairs: list[Encoded]) -> bool:
    """Whether a cost learns which responses are harmful, and not only which of two is more so."""
    return any(sign for pair in pairs for sign in harm_signs(pair))


def harm_signs(pair: Encoded) -> tuple[int, int]:
    """Safety labels of (chosen, rejected): +1 harmful, −1 safe, 0 unknown."""
    labels = pair.record.chosen_safe, pair.record.rejected_safe
    return tuple(0 if safe is None else -1 if safe else 1 for safe in labels)


class PairScorer:
    """Scores and losses of preference pairs under the engine's present weights."""

    def __init__(self, engine: Engine, pad_id: int, args: argparse.Namespace):
        self.engine, self.pad_id = engine, pad_id
        self.kind, self.regularization = args.kind, args.score_regularization
        self.batch_size = args.per_device_eval_batch_size

    def scores(self, pairs: list[Encoded]) -> torch.Tensor:
        """Raw scores of (chosen, rejected), from one forward pass over both; [b, 2] float32."""
        rows = [pair.prompt + pair.responses[side] for side in (0, 1) for pair in pairs]
        ids, mask = (tensor.to(device()) for tensor in right_pad(rows, self.pad_id))
        return self.engine(ids, mask, mask.sum(dim=-1) - 1).view(2, len(pairs)).T

    def measures(self, pairs: list[Encoded]) -> dict[str, torch.Tensor]:
        """Loss and whether the order is right, pair by pair; [b] each."""
        chosen, rejected = self.scores(pairs).unbind(dim=1)
        if self.kind == "reward":
            loss = reward_loss(chosen, rejected, self.regularization)
            return {"loss": loss, "accuracy": (chosen > rejected).float()}
        signs = torch.tensor([harm_signs(pair) for pair in pairs], device=chosen.device)
        loss = cost_loss(chosen, rejected, *signs.unbind(dim=1), self.regularization)
        return {"loss": loss, "accuracy": (chosen < rejected).float()}

    def score_table(self, pairs: list[Encoded]) -> numpy.ndarray:
        """Raw scores of (chosen, rejected) of any number of pairs, the same on every rank; [n, 2] float64."""
        return per_example(self.engine, pairs, self.batch_size, self.scores)[:, :2].numpy()


def mean_figures(scorer: PairScorer, pairs: list[Encoded]) -> dict[str, float]:
    """Means of the measures over `pairs`, the same on every rank."""

    def measures(batch: list[Encoded]) -> torch.Tensor:
        values = scorer.measures(batch)
        return torch.stack([values["loss"], values["accuracy"]], dim=1)

    loss, accuracy, _ = per_example(scorer.engine, pairs, scorer.batch_size, measures).mean(dim=0).tolist()
    return {"loss": loss, "accuracy": accuracy}


def describe_scores(model: PreTrainedModel, scorer: PairScorer, pairs: list[Encoded], args: argparse.Namespace) -> None:
    """Put what a user of the scores must know into the configuration: mean and spread; of a cost, what its zero is."""
    scores = scorer.score_table(evenly_spread(pairs, args.statistics_pairs))
    model.config.score_mean, model.config.score_std = float(scores.mean()), float(scores.std())
    if args.kind == "cost":
        model.config.zero_divides = has_safety_labels(pairs)


def evaluate(scorer: PairScorer, pairs: list[Encoded], args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy and calibration on held-out pairs, with 95% intervals; the same on every rank."""
    scores = scorer.score_table(pairs)
    chosen, rejected = (scores if args.kind == "reward" else -scores).T
    result = {
        "objective": args.objective,
        "kind": args.kind,
        "preference_label": args.preference_label,
        "pairs": len(pairs),
        "accuracy": calibration.proportion(calibration.pairwise_hits(chosen, rejected)),
        "calibration": calibration.pair_calibration(chosen, rejected, args.seed),
    }
    if args.kind == "cost":
        signs = numpy.array([harm_signs(pair) for pair in pairs])
        result |= calibration.sign_figures(scores.flatten(), signs.flatten(), args.seed) or {}
    return result


def panels(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The calibrations of an evaluation, by title."""
    titles = {"calibration": "order of a pair", "sign_calibration": "harmful or safe"}
    name = evaluation["objective"]
    return {f"{name}: {title}": evaluation[key] for key, title in titles.items() if key in evaluation}


def evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    """Lines for people: each figure with its 95% interval and number of cases."""
    names = {
        "accuracy": "pairwise accuracy",
        "calibration": "calibration error",
        "sign_accuracy": "sign accuracy",
        "sign_calibration": "calibration error of the sign",
    }
    lines = []
    for key, name in names.items():
        if key in evaluation:
            figures = evaluation[key]
            low, high = figures["ci95"]
            value = figures.get("mean", figures.get("error"))
            lines.append(f"{name} {value:.3f} (95% interval {low:.3f} to {high:.3f}, n = {figures['count']})")
    return lines


if __name__ == "__main__":
    run_main(main)
