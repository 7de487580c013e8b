"""Train a sentencepiece tokenizer on data files and initialize a Mistral-architecture decoder from scratch.

    python utils/make_base.py --sft_data sft_train.jsonl --preference_data preferences_train.jsonl \
        --tokenizer_dir output/tiny/tokenizer --model_dir output/tiny/base

The pipeline needs a small "pretrained" model where none can be downloaded. The tokenizer brings a dedicated
pad token, role markers and a chat template; bytes stand in for unknown characters, so that text survives
encoding and decoding unchanged.
"""

import argparse
import functools
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
import torch
from transformers import LlamaTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli.arguments import Parser
from utils.cli.types import fraction, positive_int, seed
from utils.data import ReadingSummary, load_dialogues, load_pairs, load_prompts  # noqa: E402
from utils.data.records import Record  # noqa: E402
from utils.models.configs import first_line
from utils.models.export import export_model  # noqa: E402
from utils.output.files import check_writable, finished_directory  # noqa: E402
from utils.process.errors import UserError, run_main  # noqa: E402

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"  # ids 0 to 3
ROLES = ("system", "user", "assistant")
ROLE_MARKERS = tuple(f"<|{role}|>" for role in ROLES)
MAX_TOKENIZER_LINES = 500_000  # a random sample of this size is plenty for a small vocabulary

# What this tool writes; a model that was trained has more.
OWN_FILES = {
    "config.json", "generation_config.json", "model.safetensors",
    "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
}  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Train a tokenizer and initialize a small decoder from scratch.")
    group = parser.add_argument_group("data, at least one; each PATH_OR_NAME[:fraction][,...]")
    group.add_argument("--sft_data", help="dialogues whose text the tokenizer learns from")
    group.add_argument("--preference_data", help="preference pairs whose text the tokenizer learns from")
    group.add_argument("--prompt_data", help="prompts whose text the tokenizer learns from")
    group = parser.add_argument_group("tokenizer")
    group.add_argument("--tokenizer_dir", required=True, help="where the tokenizer goes")
    group.add_argument(
        "--vocab_size",
        type=positive_int,
        default=768,
        help="pieces in all, of which 256 are bytes and 7 special tokens",
    )
    group.add_argument(
        "--character_coverage",
        type=fraction,
        default=0.9995,
        help="share of the characters that get a piece; bytes spell the rest",
    )
    group = parser.add_argument_group("model")
    group.add_argument("--model_dir", required=True, help="where the model and its copy of the tokenizer go")
    group.add_argument("--hidden_size", type=positive_int, default=64, help="width of the residual stream")
    group.add_argument("--num_layers", type=positive_int, default=3, help="decoder layers")
    group.add_argument("--num_heads", type=positive_int, default=4, help="attention heads")
    group.add_argument("--num_kv_heads", type=positive_int, default=2, help="key/value heads")
    group.add_argument("--intermediate_size", type=positive_int, default=128, help="feed-forward width")
    group.add_argument("--max_position_embeddings", type=positive_int, default=512, help="longest sequence")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the weights and of sampling the text")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for sizes that do not fit together and for folders that must not be replaced."""
    if not (args.sft_data or args.preference_data or args.prompt_data):
        raise UserError("--sft_data, --preference_data, --prompt_data: at least one is needed")
    if args.hidden_size % (2 * args.num_heads):
        raise UserError(f"--hidden_size {args.hidden_size}: not a multiple of twice --num_heads {args.num_heads}")
    if args.num_heads % args.num_kv_heads:
        raise UserError(f"--num_heads {args.num_heads}: not a multiple of --num_kv_heads {args.num_kv_heads}")
    check_memory(args)
    folders = {"--tokenizer_dir": Path(args.tokenizer_dir), "--model_dir": Path(args.model_dir)}
    first, second = (folder.resolve() for folder in folders.values())
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise UserError(f"--tokenizer_dir and --model_dir: {first} and {second} lie in one another")
    for flag, folder in folders.items():
        if folder.exists() and not is_own(folder):
            raise UserError(f"{flag} {folder}: exists and holds something other than an earlier result of this tool")
        check_writable(folder.resolve().parent, flag)


def check_memory(args: argparse.Namespace) -> None:
    """Raise UserError for sizes of which the weights alone, in float32, do not fit into this machine's memory."""
    width = args.hidden_size
    attention = 2 * width * (width + width // args.num_heads * args.num_kv_heads)
    weights = 2 * args.vocab_size * width + args.num_layers * (attention + 3 * width * args.intermediate_size)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        raise UserError(
            f"--hidden_size {width}, --num_layers {args.num_layers}, --vocab_size {args.vocab_size}:"
            f" {weights:,} weights take {4 * weights / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f}"
        )


def is_own(folder: Path) -> bool:
    """Whether a folder, which is replaced as a whole, is empty or holds what this tool wrote and nothing else."""
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else {""}
    template = folder / "chat_template.jinja"
    return not found or (
        found <= OWN_FILES and template.is_file() and template.read_text(errors="replace") == CHAT_TEMPLATE
    )


def training_texts(args: argparse.Namespace) -> Iterator[str]:
    """Every turn and response of the data files; prints what was read of them."""
    # Which of two replies is preferred does not matter here; every format of pairs can say which is safer.
    load_either = functools.partial(load_pairs, label="safer")
    data = {load_dialogues: args.sft_data, load_either: args.preference_data, load_prompts: args.prompt_data}
    for load, spec in data.items():
        for record in read_records(load(spec, seed=args.seed)) if spec else ():
            yield from record.texts


def read_records(read: tuple[list[Record], ReadingSummary]) -> list[Record]:
    """The records of what a loader returned, with its summary on the screen."""
    records, summary = read
    print("\n".join(summary.lines()))
    return records


def train_sentencepiece(texts: Iterable[str], vocab_size: int, character_coverage: float, seed: int) -> bytes:
    """A sentencepiece BPE model that takes text as it is: no normalization or added space, bytes as fallback.

    Raises UserError when the text does not support `vocab_size` pieces.
    """
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=UNK,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            control_symbols=list(ROLE_MARKERS),
            input_sentence_size=MAX_TOKENIZER_LINES,
            shuffle_input_sentence=True,
            max_sentence_length=1 << 16,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = first_line(error).rpartition("] ")[2]  # what follows the place in the library's source
        raise UserError(f"--vocab_size {vocab_size}: does not fit the data ({reason})") from None
    return model.getvalue()


def make_tokenizer(sentencepiece_model: bytes, model_max_length: int) -> PreTrainedTokenizerBase:
    """The trained model as a tokenizer with pad token, role markers and chat template.

    `LlamaTokenizer.from_pretrained` converts the `tokenizer.model` it finds in a folder; its constructor
    ignores the file and gives a tokenizer of three tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(sentencepiece_model)
        tokenizer = LlamaTokenizer.from_pretrained(
            folder,
            add_prefix_space=False,
            unk_token=UNK,
            bos_token=BOS,
            eos_token=EOS,
            pad_token=PAD,
            extra_special_tokens=list(ROLE_MARKERS),
            model_max_length=model_max_length,
            padding_side="left",
        )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> MistralForCausalLM:
    """A randomly initialized decoder for `tokenizer`; the same seed gives the same weights."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.num_heads,
        num_key_value_heads=args.num_kv_heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.max_position_embeddings,
        sliding_window=None,
        tie_word_embeddings=False,
        # The usual 0.02 is made for widths of a thousand; narrow models learn about twice as slowly with it.
        initializer_range=0.5 * args.hidden_size**-0.5,
        **special,
    )
    torch.manual_seed(args.seed)
    model = MistralForCausalLM(config)
    model.generation_config.update(**special)
    return model


def main() -> None:
    args = parse_arguments()
    texts = list(training_texts(args))  # read in full first: bad data is not the trainer's error
    pieces = train_sentencepiece(texts, args.vocab_size, args.character_coverage, args.seed)
    tokenizer = make_tokenizer(pieces, args.max_position_embeddings)
    model = make_model(args, tokenizer)
    with finished_directory(args.tokenizer_dir) as folder:
        tokenizer.save_pretrained(folder)
    with finished_directory(args.model_dir) as folder:
        export_model(model, tokenizer, folder)
    print(f"{args.tokenizer_dir}: {len(tokenizer)} pieces")
    print(f"{args.model_dir}: {model.config.model_type}, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    run_main(main)
