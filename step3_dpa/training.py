"""Fine-tuning on the replies that an iteration has kept, and the export of the last policy."""

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from step3_dpa.iterations import RECORDS, Iterations
from step3_dpa.sampling import free_memory
from utils.data.encoding import Encoded
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_training_engine, release
from utils.models.card import CARD, write_card
from utils.models.configs import DTYPES
from utils.models.loading import load_causal_lm
from utils.output.files import finished_files, mark_finished, write_json
from utils.process.distributed import barrier, is_main, print_main, seed_everything
from utils.process.rank_watch import beat
from utils.steering.directions import KEY, Steering
from utils.supervised.language import language_task
from utils.supervised.run import Run, export, train
from utils.supervised.steps import steps_per_epoch


def fine_tune(
    args: argparse.Namespace,
    sides: tuple[list[Encoded], list[Encoded]],
    steering: Steering,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    """An iteration's training on kept replies, as stage 1; its policy is exported to its folder.

    Args:
        args: of the iteration, see `Iterations.args_of`.
        sides: kept replies to training and to held-out prompts.

    Returns:
        Figures for the record.
    """
    beat("loading the policy that is trained")
    seed_everything(args.seed)
    run = Run(args, "dpa", sides, tokenizer, names=("kept replies", "kept held-out replies"))
    with arriving(engine_config(args)):
        model = load_causal_lm(args.model_name_or_path, "--actor_model", DTYPES[args.dtype])
    setattr(model.config, KEY, steering.as_config())
    total_steps = steps_per_epoch(len(sides[0]), args) * args.num_train_epochs
    engine = make_training_engine(model, args, args.learning_rate, total_steps)
    outcome = train(engine, model, args, language_task(engine, sides, tokenizer, args), run)
    evaluation = outcome.validation[outcome.exported_epoch] | {"epoch": outcome.exported_epoch}
    export(model, tokenizer, args, evaluation)
    run.finish()
    engine.destroy()
    release(engine)
    del engine, model, run
    free_memory()
    perplexity = {"before": outcome.validation[0]["perplexity"], "after": evaluation["perplexity"]}
    return {f"perplexity/{when}": value for when, value in perplexity.items()} | {"time/training": outcome.seconds}


def export_last(run: Iterations, args: argparse.Namespace, figures: Mapping[str, float]) -> None:
    """The last iteration's policy becomes the result, with what it is worth in evaluation.json."""
    if is_main():
        source, number = run.folder(args.iterations), args.iterations + 1
        run.logger.log(number, {f"held_out/{tag}": value for tag, value in figures.items()})
        with finished_files(args.output_dir) as folder:
            for file in source.iterdir():
                if file.is_file() and file.name not in (*RECORDS, CARD):
                    link_or_copy(file, folder / file.name)
            write_json(folder / "evaluation.json", dict(figures))
            shown = {tag: value for tag, value in figures.items() if tag.startswith(("rating/", "reward/"))}
            write_card(folder, args.output_dir, vars(args), shown)
        run.close()
        mark_finished(args.output_dir)
        shutil.rmtree(run.folder(number), ignore_errors=True)
    barrier()
    rating = f"{figures['rating/sampled']:.4g}"
    print_main(f"held-out rating {rating} · policy saved in {args.output_dir}")


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
