"""The command line: a parser with one-line errors and the groups of flags that several stages share."""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.cli import config_file
from utils.cli.free_flags import add_free
from utils.cli.types import (
    adam_beta,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seconds,
    seed,
)
from utils.process.distributed import print_main, world_size
from utils.process.errors import UserError, expect_ranks, fail

LR_SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
OF_THE_RANKS = ("world_size", "local_rank")  # in args.json of a stage: the launcher decides it


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that takes flags from a file, too, and reports a bad one in one line.

    `--config FILE` leaves no trace in what is parsed: only the values count, wherever they come from.

    Attributes:
        from_file: names of the flags that the file has given.

    Args:
        facts: what the script's own args.json holds beside flags, or in place of them; not taken from a file.
    """

    def __init__(self, facts: Collection[str] = (), **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self.facts, self.from_file = facts, frozenset()
        self.add_argument(
            config_file.FLAG,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="flags from a YAML or JSON file, by their names: {seed: 1, offload: true, reward_model: {NAME: PATH}};"
            " the args.json of an earlier run repeats it. Flags of the command line win; --NAME=null takes back what"
            " FILE says of one",
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = self.with_file(args, strict=True)
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            hint = config_file.did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Flags that are not known are left over; those of a file are left out."""
        return super().parse_known_args(self.with_file(args, strict=False), namespace)

    def with_file(self, args: Sequence[str] | None, strict: bool) -> list[str]:
        """The words of the command line, and behind them those of the file that `--config` names, if it does.

        Args:
            strict: whether every key of the file must be a flag.
        """
        try:
            name, words = config_file.split_off_config(sys.argv[1:] if args is None else args)
            if name is None:
                return words
            file = config_file.read_config(name)
            flags = self.flags_of_files()
            if strict:
                file.refuse_unknown([*flags, *self.facts], self.prog)
            settled = self.settled_by(words)
            taken = {key: flag for key, flag in flags.items() if flag not in settled and key not in self.facts}
            more = file.words(taken)
        except UserError as error:
            self.error(*error.args)
        self.from_file = frozenset(taken[key].dest for key in file.values if key in taken)
        note_ranks(file, self.facts)
        words = config_file.without_taken_back(words, self._option_string_actions)
        return config_file.add_to_command_line(words, more)

    def flags_of_files(self) -> dict[str, argparse.Action]:
        """{name without dashes: flag} of those that a file may give."""
        flags = {name[2:]: flag for name, flag in self._option_string_actions.items() if name.startswith("--")}
        return {name: flag for name, flag in flags.items() if name not in ("help", config_file.FLAG[2:])}

    def settled_by(self, words: list[str]) -> set[argparse.Action]:
        """The flags that a command line gives or takes back, and those that do not go with what it gives."""
        known = self._option_string_actions
        kept = config_file.without_taken_back(words, known)
        named, given = ({known[name] for name in config_file.flags_among(part, known)} for part in (words, kept))
        groups = [set(group._group_actions) for group in self._mutually_exclusive_groups]
        return named.union(*(group for group in groups if group & given))

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def note_ranks(file: config_file.ConfigFile, facts: Collection[str]) -> None:
    """Say where a run is repeated on another number of ranks, on which its batches are others."""
    ranks = file.values.get("world_size", str(world_size()))
    if "world_size" in facts and ranks != str(world_size()):
        print_main(f"note: {config_file.FLAG} {file.path}: that run had {ranks} ranks, this one has {world_size()}")


def add_data_arguments(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    """`--data` and the treatment of what does not fit. `what` says what the stage reads from it."""
    group = parser.add_argument_group("data")
    add_data_argument(group, what, required)
    add_fitting_arguments(group)


def add_fitting_arguments(group: argparse._ArgumentGroup) -> None:
    """What becomes of examples that do not fit."""
    group.add_argument(
        "--overlong",
        choices=("error", "drop"),
        default="error",
        help="a prompt longer than allowed: stop and name it, or drop and count it",
    )
    add_free(
        group,
        "--unfit",
        choices=("error", "drop"),
        default="error",
        help="turns that the chat template refuses (a system turn, roles that do not alternate) or in which it does not"
        " tell prompt and reply apart: stop and name them, or drop and count them",
    )


def add_data_argument(parser: argparse._ActionsContainer, what: str, required: bool = True) -> None:
    """`--data` alone."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="PATH_OR_NAME[:fraction][,...]",
        help=f"{what}: files (jsonl, jsonl.gz, json, parquet, csv), folders or hub names, each with an optional"
        " fraction to subsample; formats are recognized by their fields (PKU-SafeRLHF, HH-RLHF, messages, Alpaca,"
        " prompt/response, chosen/rejected, ...)",
    )


def add_actor_argument(group: argparse._ArgumentGroup) -> None:
    """The policy that is aligned."""
    group.add_argument(
        "--actor_model", required=True, metavar="PATH", help="SFT policy: start, reference and tokenizer"
    )


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """What model folders of others may do; `utils.models.configs.allow` grants it."""
    group = parser.add_argument_group("models from others")
    add_free(
        group, "--trust_remote_code", action="store_true", help="run program code that a model folder brings along"
    )
    add_free(group, "--allow_pickle", action="store_true", help="read pickled weights (.bin) too, not only safetensors")
    group.add_argument(
        "--attn_implementation",
        metavar="NAME",
        help="how attention is computed: eager, sdpa, flash_attention_2 or another name that transformers knows"
        " (default: what it chooses)",
    )


def add_supervised_arguments(parser: argparse.ArgumentParser) -> None:
    """What stages 1 and 2 share: a pretrained model in, epochs over a data set, a trained model out."""
    group = parser.add_argument_group("training")
    group.add_argument("--model_name_or_path", required=True, help="model to start from: folder or hub name")
    group.add_argument(
        "--validation_data",
        metavar="PATH_OR_NAME[:fraction][,...]",
        help="held-out data; without it, --validation_fraction of --data is held out, by prompt",
    )
    add_epoch_arguments(group, "sequences a rank and step")
    add_optimization_arguments(parser)
    add_loading_arguments(parser)


def add_epoch_arguments(group: argparse._ArgumentGroup, batch: str, max_length: bool = True) -> None:
    """Epochs over a data set, part of which is held out.

    Args:
        batch: what a batch size counts; max_length: whether the data has lengths of its own.
    """
    group.add_argument("--validation_fraction", type=fraction, default=0.05, help="share of the prompts held out")
    if max_length:
        group.add_argument(
            "--max_length", type=positive_int, default=512, help="tokens of prompt and response together"
        )
    group.add_argument("--num_train_epochs", type=positive_int, default=1, help="passes over the data")
    group.add_argument("--per_device_train_batch_size", type=positive_int, default=16, help=batch)
    add_free(group, "--per_device_eval_batch_size", type=positive_int, default=32, help=f"{batch}, evaluation")
    group.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=1, help="micro-batches an optimizer step"
    )
    group.add_argument("--learning_rate", type=positive_float, default=2e-5, help="peak learning rate of AdamW")
    group.add_argument("--adam_betas", type=adam_beta, nargs=2, default=(0.9, 0.95), metavar=("B1", "B2"), help="AdamW")
    group.add_argument("--adam_eps", type=positive_float, default=1e-8, help="AdamW")
    group.add_argument(
        "--export",
        choices=("best", "last"),
        default="best",
        help="model of the epoch with the lowest validation loss, or of the last epoch",
    )


def add_optimization_arguments(parser: argparse.ArgumentParser) -> None:
    """Schedules, decay and bookkeeping common to the three stages."""
    group = parser.add_argument_group("optimization and bookkeeping")
    group.add_argument("--weight_decay", type=non_negative_float, default=0.0, help="AdamW weight decay")
    group.add_argument("--lr_scheduler_type", choices=LR_SCHEDULERS, default="cosine", help="learning-rate schedule")
    group.add_argument(
        "--num_warmup_steps", type=non_negative_int, default=None, help="warm-up steps; overrides --warmup_ratio"
    )
    group.add_argument("--warmup_ratio", type=fraction, default=0.03, help="warm-up steps as a share of all steps")
    group.add_argument(
        "--max_grad_norm", type=non_negative_float, default=1.0, help="gradient clipping; 0 switches it off"
    )
    add_free(group, "--gradient_checkpointing", action="store_true", help="recompute activations to save memory")
    group.add_argument("--seed", type=seed, default=42, help="seed of everything random")
    add_free(group, "--output_dir", required=True, help="where the result goes")
    add_free(group, "--print_interval", type=positive_int, default=10, help="steps between progress lines")


def add_logits_argument(group: argparse._ArgumentGroup) -> None:
    """`--logits_chunk_size`."""
    add_free(
        group,
        "--logits_chunk_size",
        type=non_negative_int,
        default=512,
        metavar="N",
        help="tokens whose logits exist at once in forward and backward passes; 0: those of the whole micro-batch"
        " (spares a product with the output head)",
    )


def add_checkpoint_arguments(parser: argparse.ArgumentParser, interval: int, unit: str) -> None:
    """How a run is kept from losing work; `interval` is in the stage's `unit` of progress."""
    group = parser.add_argument_group("checkpoints and failures")
    add_free(
        group,
        "--checkpoint_interval",
        type=non_negative_int,
        default=interval,
        help=f"{unit} between checkpoints in <output_dir>/checkpoints, from which the same command goes on; 0: none",
    )
    add_free(group, "--checkpoints_kept", type=positive_int, default=2, help="newest checkpoints that are kept")
    add_free(group, "--keep_checkpoints", action="store_true", help="keep them when the run is finished, too")
    add_free(group, "--fresh", action="store_true", help="start over, whatever checkpoints there are")
    add_free(
        group,
        "--allow_changed_flags",
        action="store_true",
        help="go on from a checkpoint although flags, data or models that change the result are others now",
    )
    add_free(
        group,
        "--max_skipped_steps",
        type=positive_int,
        default=20,
        help="optimizer steps in a row that may be skipped because something is not finite, before the run stops",
    )
    add_free(
        group,
        "--rank_timeout",
        type=seconds,
        default=600.0,
        help="seconds in which no rank begins a new phase (generation, an update, ...), after which the whole run ends;"
        " 0: wait for ever",
    )


def add_deepspeed_arguments(parser: argparse.ArgumentParser) -> None:
    """How the models lie on the devices; what has these flags runs on several ranks."""
    expect_ranks()
    group = parser.add_argument_group("DeepSpeed")
    add_free(group, "--zero_stage", type=int, choices=(0, 1, 2, 3), default=0, help="ZeRO stage: what is partitioned")
    add_free(group, "--offload", action="store_true", help="keep optimizer states (and ZeRO-3 parameters) on the CPU")
    group.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="precision of the models")
    add_free(group, "--local_rank", type=int, default=-1, help="set by the deepspeed launcher")


def add_dry_run_arguments(parser: argparse.ArgumentParser) -> None:
    """A look at a run before it: see `utils.memory.dry_run`."""
    group = parser.add_argument_group("dry run")
    add_free(
        group,
        "--dry_run",
        action="store_true",
        help="check everything that can be checked without weights, print models, batches and the memory plan, and end;"
        " nothing is written, no GPU is needed; exit code 0: it can start, 1: it does not fit in memory, 2: bad input,"
        " every mistake in a line",
    )
    add_free(
        group, "--plan_ranks", type=positive_int, metavar="N", help="dry run: ranks to plan for (those of this command)"
    )
    add_free(
        group,
        "--plan_devices",
        type=positive_int,
        metavar="N",
        help="dry run: devices there will be (GPUs of this machine; without one, as many as ranks)",
    )
    add_free(
        group,
        "--plan_memory",
        type=positive_float,
        metavar="GIB",
        help="dry run: memory of a GPU to plan for (this machine's GPU; without one, plans for its CPU)",
    )
    add_free(
        group,
        "--plan_host_memory",
        type=positive_float,
        metavar="GIB",
        help="dry run: memory of a machine itself (this machine's; with --plan_memory, not known and not checked)",
    )
    add_free(
        group, "--plan_machines", type=positive_int, metavar="N", help="dry run: machines that share the ranks (1)"
    )


def check_deepspeed_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for flags that DeepSpeed would silently ignore."""
    if args.offload and args.zero_stage == 0:
        raise UserError("--offload: needs --zero_stage 1, 2 or 3")


def check_output_file(path: str | Path, flag: str = "--output_dir") -> None:
    """Raise UserError, which names `flag`, if a file that is to be written cannot take the place of what is there."""
    if Path(path).is_dir():
        raise UserError(f"{flag} {path}: a folder is where a file goes")


def note_warmup(args: argparse.Namespace, total_steps: int) -> None:
    """Say where a warm-up that was asked for is not what will happen."""
    steps = warmup_steps(args, total_steps)
    flag = "--warmup_ratio" if args.num_warmup_steps is None else "--num_warmup_steps"
    if args.num_warmup_steps and args.lr_scheduler_type == "constant":
        print_main(f"note: --num_warmup_steps {steps}: --lr_scheduler_type constant has no warm-up")
    elif steps >= total_steps and args.lr_scheduler_type != "constant":
        print_main(
            f"note: {flag} {getattr(args, flag[2:]):g}: {steps} steps of warm-up, but {total_steps} optimizer steps in"
            " all; the learning rate does not reach its peak"
        )


def warmup_steps(args: argparse.Namespace, total_steps: int) -> int:
    """`--num_warmup_steps`, or `--warmup_ratio` of all optimizer steps (rounded up), but not all of them."""
    if args.num_warmup_steps is not None:
        return args.num_warmup_steps
    return min(-int(-args.warmup_ratio * total_steps // 1), total_steps - 1 if args.warmup_ratio < 1 else total_steps)
