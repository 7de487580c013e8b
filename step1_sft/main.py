"""Step 1: supervised fine-tuning of a language model on the responses of a dialogue data set.

    python step1_sft/main.py --help                              one rank
    deepspeed --num_accelerators 2 step1_sft/main.py --help      several ranks

The result is a Hugging Face folder, chat template included: the policy that step 3 starts from.
"""

import argparse
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from utils.data import load_dialogues
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_training_engine
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_causal_lm, check_dialogues
from utils.models.configs import DTYPES, allow, load_config, load_tokenizer
from utils.models.loading import load_causal_lm
from utils.output.files import check_output
from utils.process.distributed import init_distributed, seed_everything, shutdown_distributed
from utils.process.errors import Problems, run_main
from utils.process.rank_watch import watch_ranks
from utils.supervised.examples import read_examples
from utils.supervised.language import language_task, response_length
from utils.supervised.run import Run, export, note_steps, print_summary, print_supervised_dry_run, train
from utils.supervised.steps import steps_per_epoch


def main() -> None:
    # Arguments, data, and everything that can be checked before a model is built.
    args = parse_args()
    problems = Problems(collecting=args.dry_run)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    tokenizer, architecture = check_start(args, problems)
    training_examples, validation_examples = read_examples(args, tokenizer, load_dialogues, architecture, problems)
    problems.report()
    note_steps(args, training_examples.total)
    if args.dry_run:
        return print_supervised_dry_run(args, "sft", architecture, training_examples, validation_examples)
    check_output(args.output_dir, args.fresh)

    # Engine.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    seed_everything(args.seed)
    run = Run(args, "sft", (training_examples, validation_examples), tokenizer)
    with arriving(engine_config(args)):
        model = load_causal_lm(args.model_name_or_path, "--model_name_or_path", DTYPES[args.dtype])
    total_steps = steps_per_epoch(len(training_examples), args) * args.num_train_epochs
    engine = make_training_engine(model, args, args.learning_rate, total_steps)

    # Training, with perplexity on the validation data before, after every epoch and of what is exported.
    task = language_task(engine, (training_examples, validation_examples), tokenizer, args)
    outcome = train(engine, model, args, task, run)

    # The fine-tuned policy.
    evaluation = outcome.validation[outcome.exported_epoch] | {
        "perplexity_before": outcome.validation[0]["perplexity"],
        "epoch": outcome.exported_epoch,
        "examples": len(validation_examples),
        "response_tokens": sum(map(response_length, validation_examples)),
    }
    export(model, tokenizer, args, evaluation)
    run.finish()
    print_summary(args, outcome, len(training_examples), "perplexity")
    shutdown_distributed()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Step 1: supervised fine-tuning on responses.", facts=OF_THE_RANKS)
    add_data_arguments(parser, "dialogues")
    add_supervised_arguments(parser)
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="folder or hub name of the tokenizer, where the model's own has no chat template; it must fit the model",
    )
    add_checkpoint_arguments(parser, 200, "optimizer steps")
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    args = parser.parse_args(argv)
    allow(args)
    return args


def check_start(
    args: argparse.Namespace, problems: Problems
) -> tuple[PreTrainedTokenizerBase | None, PreTrainedModel | None]:
    """The tokenizer, and the model without memory for its parameters; None for one with a problem."""
    model = args.model_name_or_path, "--model_name_or_path"
    named = (args.tokenizer, "--tokenizer") if args.tokenizer else model
    problems.take(load_config, *model)
    tokenizer = problems.take(load_tokenizer, *named, True, model)
    architecture = problems.take(check_causal_lm, *model, tokenizer)
    usable = problems.passes(check_dialogues, tokenizer, model[1])
    return tokenizer if usable else None, architecture


if __name__ == "__main__":
    run_main(main)
