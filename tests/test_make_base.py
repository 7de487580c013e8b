"""The tokenizer and model made from scratch: exact text, right ids, chat template, seeds, one-line errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from utils import make_base
from utils.process.errors import UserError
from utils.safe_rlhf_mini.generate import corpus

ROOT = Path(__file__).resolve().parents[1]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " How do I fix my bike?\n"},
    {"role": "assistant", "content": "Test the bike."},
    {"role": "user", "content": "And then?"},
]


def arguments(folder: Path, **flags: object) -> list[str]:
    """Command line on the data in `folder`; `flags` replace the defaults."""
    chosen = {
        "sft_data": folder / "sft_train.jsonl",
        "preference_data": folder / "preferences_train.jsonl",
        "prompt_data": folder / "prompts_train.jsonl",
        "tokenizer_dir": folder / "tokenizer",
        "model_dir": folder / "base",
        "vocab_size": 600,
        "hidden_size": 32,
        "num_layers": 2,
    } | flags
    return [part for name, value in chosen.items() for part in (f"--{name}", str(value))]


def run_in_process(monkeypatch: pytest.MonkeyPatch, folder: Path, **flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["make_base.py", *arguments(folder, **flags)])
    make_base.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus and what the command makes of it."""
    path = tmp_path_factory.mktemp("base")
    for name, rows in corpus(0, 300, 300, 20, 16, 16).items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "utils/make_base.py", *arguments(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "600 pieces" in result.stdout and "parameters" in result.stdout
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder / "base")


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_ids_agree_everywhere(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 600
    special = [tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert special == [0, 1, 2, 3]
    assert tokenizer.convert_tokens_to_ids(list(make_base.ROLE_MARKERS)) == [4, 5, 6]
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == 512
    config = AutoConfig.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    for holder in (config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 2, 3)
    assert config.architectures == ["MistralForCausalLM"] and config.vocab_size == 600
    assert (config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings) == (32, 2, False)
    assert AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab() == tokenizer.get_vocab()


def test_the_corpus_survives_without_unknowns(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [
        row[key]
        for name in ("sft_train", "preferences_validation")
        for row in map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        for key in ("prompt", "response", "response_0", "response_1")
        if key in row
    ]
    encoded = [encode(tokenizer, text) for text in texts]
    assert all(min(ids) > 6 for ids in encoded)
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert sum(map(len, encoded)) < 0.6 * sum(map(len, texts))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces  ",
        "\n",
        "a\n\nb\r\n\tc",
        "naïve café ∑ 你好 🙂",
        "zero\u200bwidth\u2028line",
        "Isn't it , no ?",
        "{'json': [1, 2]} <b>",
        "\x07bell",
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s><|system|>Be brief.<|user|> How do I fix my bike?\n<|assistant|>Test the bike.</s>"
        "<|user|>And then?<|assistant|>"
    )
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    assert ids == encode(tokenizer, text) and tokenizer.decode(ids) == text
    assert [i for i in ids if i < 7] == [1, 4, 5, 6, 2, 5, 6]


def test_the_prompt_is_a_prefix_of_the_dialogue(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": "Ride."}])["input_ids"]
    assert whole == [*prompt, *encode(tokenizer, "Ride."), tokenizer.eos_token_id]


def test_unknown_roles_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_new_model_knows_nothing_and_generates(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    inputs = tokenizer(["How do I cook a soup?", "I want"], return_tensors="pt", padding=True)
    loss = model(**inputs, labels=inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)).loss
    assert 0.9 < loss.item() / torch.log(torch.tensor(600.0)).item() < 1.2
    generated = model.generate(**inputs, max_new_tokens=3)
    assert generated.shape[1] <= inputs.input_ids.shape[1] + 3


def test_the_seed_decides(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        folders = {"tokenizer_dir": tmp_path / f"t{seed}", "model_dir": tmp_path / f"m{seed}"}
        run_in_process(monkeypatch, folder, seed=seed, **folders)
    models = (folder / "base", tmp_path / "m0", tmp_path / "m1")
    weights = [(path / "model.safetensors").read_bytes() for path in models]
    assert weights[0] == weights[1] != weights[2]
    tokenizers = (folder / "base", tmp_path / "m0", tmp_path / "t0")
    assert len({(path / "tokenizer.json").read_bytes() for path in tokenizers}) == 1


def test_one_kind_of_data_is_enough(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "make_base.py",
        "--prompt_data",
        str(folder / "prompts_train.jsonl"),
        "--vocab_size",
        "400",
        "--tokenizer_dir",
        str(tmp_path / "t"),
        "--model_dir",
        str(tmp_path / "m"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    make_base.main()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "m")) == 400


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ({"vocab_size": 100}, "--vocab_size 100"),
        ({"vocab_size": 100_000}, "--vocab_size 100000"),
        ({"num_heads": 3}, "--hidden_size 32"),
        ({"num_kv_heads": 3}, "--num_heads 4"),
        ({"sft_data": "missing.jsonl"}, "missing.jsonl"),
    ],
)
def test_bad_input_names_the_culprit_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: dict, culprit: str
) -> None:
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    with pytest.raises(UserError) as error:
        run_in_process(monkeypatch, folder, **flags)
    assert culprit in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_folders_that_are_no_earlier_result_stay(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="--model_dir .*mine"):
        run_in_process(monkeypatch, folder, model_dir=tmp_path / "mine")
    with pytest.raises(UserError, match="lie in one another"):
        run_in_process(monkeypatch, folder, model_dir=folder / "tokenizer" / "model")
    with pytest.raises(UserError, match="--tokenizer_dir .*thesis"):
        run_in_process(monkeypatch, folder, tokenizer_dir=tmp_path / "mine" / "thesis.txt")


def test_only_what_this_tool_wrote_is_replaced(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_text("of a killed run")
    run_in_process(monkeypatch, folder, tokenizer_dir=tmp_path / "tokenizer", model_dir=tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == (folder / "base/model.safetensors").read_bytes()
    (tmp_path / "base" / "args.json").write_text("{}")
    with pytest.raises(UserError, match="--model_dir .*base: exists and holds something other"):
        run_in_process(monkeypatch, folder, tokenizer_dir=tmp_path / "tokenizer", model_dir=tmp_path / "base")


def test_no_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ["--tokenizer_dir", f"{tmp_path}/t", "--model_dir", f"{tmp_path}/m"]
    monkeypatch.setattr(sys, "argv", ["make_base.py", *folders])
    with pytest.raises(UserError, match="--sft_data"):
        make_base.main()
