"""Step 2: train a score model: the reward or cost of one objective on pairs, or several attributes on ratings.

    python step2_reward/main.py --help                              one rank
    deepspeed --num_accelerators 2 step2_reward/main.py --help      several ranks

The result scores the last token of a response. All kinds are exported in the same form; that a reward is better when
high and a cost when low is said in the configuration, as is what the outputs of several attributes are.
"""

import argparse
import functools
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from step2_reward.pairs import ALL_FLAGS, PairTraining, add_pair_arguments, settle_pair_arguments
from step2_reward.ratings import RatingTraining, add_rating_arguments
from step2_reward.training import LastTokenScore, ScoreTraining, find_tokenizer
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
from utils.cli.types import safe_name
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_training_engine
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_decoder
from utils.models.configs import DTYPES, allow
from utils.models.loading import new_score_model
from utils.output.files import check_output
from utils.process.distributed import init_distributed, print_main, seed_everything, shutdown_distributed
from utils.process.errors import Problems, UserError, run_main
from utils.process.rank_watch import watch_ranks
from utils.supervised.examples import read_examples
from utils.supervised.run import Run, export, note_steps, print_summary, print_supervised_dry_run, train
from utils.supervised.steps import steps_per_epoch
from utils.supervised.task import Task

MODEL = "--model_name_or_path"
KINDS: dict[str, type[ScoreTraining]] = {"reward": PairTraining, "cost": PairTraining, "ratings": RatingTraining}


def main() -> None:
    # Arguments, data, and everything that can be checked before a model is built.
    args = parse_args()
    training = KINDS[args.kind](args)
    problems = Problems(collecting=args.dry_run)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    check = functools.partial(check_decoder, from_scores=args.kind != "ratings")
    architecture = problems.take(check, args.model_name_or_path, MODEL)
    tokenizer = find_tokenizer(args, problems)
    examples, held_out = read_examples(
        args, tokenizer, training.load, architecture, problems, load_held_out=training.load_held_out
    )
    problems.report()
    note_steps(args, examples.total)
    training.take_note(examples)
    if args.dry_run:
        return print_supervised_dry_run(args, "reward", architecture, examples, held_out)
    training.settle(examples, held_out)
    check_output(args.output_dir, args.fresh)

    # Engine.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    run = Run(args, "reward", (examples, held_out), tokenizer)
    with arriving(engine_config(args)):
        model = new_score_model(args.model_name_or_path, MODEL, DTYPES[args.dtype], training.labels)
    training.describe(model.config)
    total_steps = steps_per_epoch(len(examples), args) * args.num_train_epochs
    engine = make_training_engine(LastTokenScore(model), args, args.learning_rate, total_steps)
    training.begin(engine, tokenizer.pad_token_id)

    # Training, with figures on held-out data before, after every epoch and of what is exported.
    task = Task(
        train=examples,
        units=training.units,
        sums=training.sums,
        validate=lambda: training.validate(held_out),
        shown=training.shown,
    )
    outcome = train(engine, model, args, task, run)

    # The score model, with what is to be known of its scores.
    training.finish(model.config, examples)
    evaluation = training.evaluate(held_out) | {"epoch": outcome.exported_epoch}
    picture = lambda folder: training.plot(evaluation, folder / "calibration.png")
    export(model, tokenizer, args, evaluation, picture)
    print_main("\n".join(training.lines(evaluation)))
    run.finish()
    print_summary(args, outcome, len(examples), training.shown[0])
    shutdown_distributed()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Step 2: train one score model on preference pairs or ratings.", facts=OF_THE_RANKS)
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--objective",
        type=safe_name,
        metavar="NAME",
        help="name of the objective, kept with the model (of ratings: ratings)",
    )
    group.add_argument(
        "--kind",
        choices=tuple(KINDS),
        required=True,
        help="reward: higher is better, Bradley-Terry; cost: lower is better, with the sign of"
        " the safety labels (Safe RLHF); ratings: an output for each attribute that replies are rated on, any of which"
        " step 3 takes as objectives (--score_label)",
    )
    add_pair_arguments(parser)
    add_rating_arguments(parser)
    add_data_arguments(parser, "preference pairs, or ratings")
    add_supervised_arguments(parser)
    add_checkpoint_arguments(parser, 200, "optimizer steps")
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    args = parser.parse_args(argv)
    allow(args)
    settle_kind(args)
    return args


def settle_kind(args: argparse.Namespace) -> None:
    """Raises: UserError: a name is missing, or flags are of another kind."""
    if args.kind == "ratings":
        args.objective = args.objective or "ratings"
        for name in (name for name in ALL_FLAGS if getattr(args, name) is not None):
            raise UserError(f"--{name}: serves --kind reward and cost")
        return
    if args.objective is None:
        raise UserError("--objective: needed for the name of the reward or cost")
    if args.attributes:
        raise UserError("--attributes: serves --kind ratings (--pairs_from makes pairs of ratings)")
    settle_pair_arguments(args)


if __name__ == "__main__":
    run_main(main)
