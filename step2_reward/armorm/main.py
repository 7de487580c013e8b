"""Step 2, ArmoRM: interpretable attributes, and a gate over them that reads the prompt (arXiv 2406.12845).

    python step2_reward/armorm/main.py --help                              one rank
    deepspeed --num_accelerators 2 step2_reward/armorm/main.py --help      several ranks

A frozen backbone reads every dialogue once; ratings are regressed on its hidden states, an attribute at a time;
verbosity is taken out of the other attributes; a gate learns from pairs which attributes count for which prompt. What
is exported has the released model's format (`utils.scoring.armorm_format`).
"""

import argparse
import functools
import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step2_reward.armorm.attributes import add_attribute_arguments, chosen_attributes, debiased, fit_attributes
from step2_reward.armorm.export import export_armorm
from step2_reward.armorm.figures import evaluate
from step2_reward.armorm.gate import (
    GATE_DEFAULTS,
    GatedPairs,
    GateTraining,
    add_gate_arguments,
    gate_examples,
    new_gate,
)
from step2_reward.armorm.states import StateReader, add_state_arguments, fit_dialogues, keep_states, states_folder
from step2_reward.training import find_tokenizer
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
from utils.data import load_pairs
from utils.data.loading import load_view
from utils.data.ratings import RatingsView, check_rated, named_attributes
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_frozen_engine, make_training_engine
from utils.memory.dry_run import settle_ranks
from utils.models.checking import check_decoder
from utils.models.configs import DTYPES, allow, embedding_rows
from utils.models.loading import load_for_its_trunk, trunk_of
from utils.output.files import check_output, remove_folder
from utils.process.distributed import init_distributed, is_main, print_main, seed_everything, shutdown_distributed
from utils.process.errors import Problems, UserError, run_main
from utils.process.rank_watch import watch_ranks
from utils.scoring.armorm_format import BEHIND_REPLY, reads_prompts, template_pattern
from utils.supervised.examples import Examples, check_positions, encode, read_examples
from utils.supervised.run import Run, note_steps, print_summary, print_supervised_dry_run, train
from utils.supervised.steps import steps_per_epoch

MODEL = "--model_name_or_path"


def main() -> None:
    # Arguments, data, and everything that can be checked before the backbone is loaded.
    args = parse_args()
    problems = Problems(collecting=args.dry_run)
    problems.take(settle_ranks, args)
    problems.take(check_deepspeed_arguments, args)
    any_decoder = functools.partial(check_decoder, of_any_labels=True)
    architecture = problems.take(any_decoder, args.model_name_or_path, MODEL)
    tokenizer = find_tokenizer(args, problems)
    pattern = problems.take(prompt_pattern, tokenizer, args.model_name_or_path)
    rated = problems.take(read_ratings, args, tokenizer, architecture)
    load = lambda spec, seed: load_pairs(spec, args.preference_label, seed)
    fit = functools.partial(fit_dialogues, pattern=pattern or ())
    pairs, held_out = read_examples(args, tokenizer, load, architecture, problems, fit)
    attributes = problems.take(chosen_attributes, args, rated)
    problems.report()
    note_steps(args, pairs.total)
    if args.dry_run:
        return print_supervised_dry_run(args, "backbone", architecture, pairs, held_out, rated)
    check_output(args.output_dir, args.fresh)

    # The frozen backbone, and its hidden states of all dialogues.
    init_distributed(args.rank_timeout)
    watch_ranks(args.output_dir, args.rank_timeout)
    with arriving(engine_config(args, frozen=True)):
        model = load_for_its_trunk(args.model_name_or_path, MODEL, DTYPES[args.dtype])
    engine = make_frozen_engine(StateReader(trunk_of(model)), args)
    read = {"ratings": (rated, []), "pairs": (pairs, pattern), "held_out": (held_out, pattern)}
    kept = keep_states(args, engine, read, tokenizer.pad_token_id)

    # A regression an attribute, and verbosity taken out of the others.
    fitted = fit_attributes(args, kept["ratings"].last_states, rated, attributes)
    transform = debiased(args, kept["pairs"], fitted)

    # The gate.
    gate_pairs, gate_held_out = (gate_examples(kept[name], fitted, transform) for name in ("pairs", "held_out"))
    gate_args = argparse.Namespace(**vars(args) | {"dtype": "fp32"})
    run = Run(args, "armorm", (gate_pairs, gate_held_out), tokenizer, describe=lambda *_: None)
    seed_everything(args.seed)
    gated = GatedPairs(new_gate(args, fitted))
    total_steps = steps_per_epoch(len(gate_pairs), args) * args.num_train_epochs
    training = GateTraining(make_training_engine(gated, gate_args, args.learning_rate, total_steps), args)
    outcome = train(training.engine, gated, args, training.task(gate_pairs, gate_held_out), run)

    # Figures, and one folder in the released format.
    evaluation = evaluate(args, training, gate_pairs, gate_held_out, fitted, transform)
    export_armorm(
        model, tokenizer, args, gated, fitted, transform, pattern, evaluation | {"epoch": outcome.exported_epoch}
    )
    run.finish()
    if is_main() and args.states_dir is None:
        remove_folder(states_folder(args))
    print_summary(args, outcome, len(gate_pairs), "accuracy")
    shutdown_distributed()


def prompt_pattern(tokenizer: PreTrainedTokenizerBase, path: str) -> list[int]:
    """The ids at which the gate will read.

    Raises:
        UserError: the chat template has none before the reply.
    """
    pattern = template_pattern(tokenizer, path, MODEL)
    if not reads_prompts(tokenizer, pattern):
        raise UserError(f"{MODEL} {path}: {BEHIND_REPLY}")
    return pattern


def read_ratings(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, architecture: PreTrainedModel | None
) -> Examples:
    """The replies of `--ratings` that fit; prints what was read."""
    attributes = named_attributes(args.attributes)
    records, summary = load_view(args.ratings, RatingsView(attributes=attributes), args.seed)
    check_rated(records, attributes, args.ratings)
    examples = encode(args, tokenizer, (records, summary), embedding_rows(architecture), fit_dialogues)
    check_positions(args, max(example.length for example in examples))
    print_main("\n".join(f"ratings: {line}" for line in summary.lines()))
    return examples


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Step 2, ArmoRM: attributes from ratings, a gate from pairs.", facts=OF_THE_RANKS)
    group = parser.add_argument_group("attributes")
    group.add_argument("--objective", type=safe_name, default="armorm", metavar="NAME", help="kept with the model")
    group.add_argument(
        "--ratings", required=True, metavar="PATH_OR_NAME[:fraction][,...]", help="replies rated on several attributes"
    )
    add_attribute_arguments(group)
    add_data_arguments(parser, "preference pairs for the gate")
    add_gate_arguments(parser)
    add_supervised_arguments(parser)
    add_checkpoint_arguments(parser, 200, "optimizer steps of the gate")
    add_deepspeed_arguments(parser)
    add_dry_run_arguments(parser)
    add_state_arguments(parser)
    parser.set_defaults(**GATE_DEFAULTS)
    args = parser.parse_args(argv)
    allow(args)
    if args.gradient_checkpointing:
        raise UserError("--gradient_checkpointing: the backbone is frozen, nothing of it is kept")
    return args


if __name__ == "__main__":
    run_main(main)
