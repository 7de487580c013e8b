"""Step 1: supervised fine-tuning of a language model on the responses of a dialogue data set.

    python step1_sft/main.py --help                              one rank
    deepspeed --num_accelerators 2 step1_sft/main.py --help      several ranks

The result is a Hugging Face folder, chat template included: the policy that step 3 starts from.
"""

import argparse
import gc
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.functional import cross_entropy
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
from utils.data.batching import right_pad
from utils.data.encoding import Encoded
from utils.engines.arrival import arriving
from utils.engines.engines import Engine, engine_config, make_training_engine
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_causal_lm, check_dialogues
from utils.models.configs import DTYPES, allow, load_config, load_tokenizer
from utils.models.loading import load_causal_lm, position_ids_from_mask
from utils.output.files import check_output
from utils.process.distributed import device, init_distributed, seed_everything, shutdown_distributed
from utils.process.errors import Problems, run_main
from utils.process.rank_watch import watch_ranks
from utils.supervised.examples import read_examples
from utils.supervised.run import Run, export, note_steps, print_summary, print_supervised_dry_run, train
from utils.supervised.steps import per_example, steps_per_epoch
from utils.supervised.task import Task

MAX_EXPONENT = 700  # of a float
IGNORED = -100  # label of a token that is not trained on


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
    def validate() -> dict[str, float]:
        table = per_example(
            engine,
            validation_examples,
            args.per_device_eval_batch_size,
            lambda examples: response_nll(engine, examples, tokenizer.pad_token_id),
        )
        loss = (table[:, 0].sum() / sum(map(response_length, validation_examples))).item()
        return {"loss": loss, "perplexity": math.exp(loss) if loss < MAX_EXPONENT else math.inf}

    task = Task(
        train=training_examples,
        units=response_length,
        sums=lambda examples: {"loss": response_nll(engine, examples, tokenizer.pad_token_id).sum()},
        validate=validate,
        shown=("perplexity",),
    )
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


def response_length(example: Encoded) -> int:
    """Response tokens, EOS included."""
    return len(example.responses[0])


def collate(examples: list[Encoded], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded (input_ids, attention_mask, labels), each [b, t]; IGNORED labels prompt and padding."""
    ids, mask = right_pad([example.prompt + example.responses[0] for example in examples], pad_id)
    labels, _ = right_pad([[IGNORED] * len(e.prompt) + e.responses[0] for e in examples], IGNORED)
    return ids.to(device()), mask.to(device()), labels.to(device())


def response_nll(engine: Engine, examples: list[Encoded], pad_id: int) -> torch.Tensor:
    """Negative log-likelihood of each response given its prompt, summed over its tokens; [b] float32."""
    ids, mask, labels = collate(examples, pad_id)
    logits = engine(
        input_ids=ids, attention_mask=mask, position_ids=position_ids_from_mask(mask), use_cache=False
    ).logits
    return label_nll(logits, labels)


def label_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of −log softmax(logits_t)[labels_{t+1}] over the labels that are not IGNORED, in float32.

    Args:
        logits: [b, t, vocabulary].
        labels: [b, t].

    Returns:
        [b].
    """
    targets = labels[:, 1:]
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).sum(dim=-1)


if __name__ == "__main__":
    run_main(main)
