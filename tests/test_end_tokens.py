"""Every id that may end a response ends it: those of the tokenizer, of config.json and of generation_config.json."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests import architectures
from tests.helpers import STEP3, flags, read_metrics, run_command, run_script
from tests.test_turn_endings import ENDINGS
from utils.data.encoding import encode_prompt, encode_response, end_ids, response_text
from utils.models.configs import load_tokenizer
from utils.models.export import describe_model, export_model
from utils.models.loading import load_causal_lm

pytestmark = pytest.mark.slow

EOS, END = 1, 4  # of Gemma's kind: the tokenizer's, and the one that ends its turns
PROMPTS = [
    f"How do I {verb} a {thing}?" for verb in ("make", "fix", "grow") for thing in ("pie", "lamp", "rose", "bed")
]
LENGTH = 24


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that ends some of its turns, by the second id, which generation_config.json alone names."""
    folder = tmp_path_factory.mktemp("gemma") / "policy"
    row = next(a for a in architectures.ARCHITECTURES if a.name == "llama")
    config = row.config()
    config.eos_token_id, config.pad_token_id, config.bos_token_id = EOS, 0, 2
    model = architectures.random_model(AutoModelForCausalLM, config, spread=1.0)
    model.lm_head.weight.data[END] *= 12  # as good as certain in some states
    model.lm_head.weight.data[EOS] = 0
    model.generation_config = GenerationConfig(
        eos_token_id=[EOS, END], pad_token_id=0, bos_token_id=2, do_sample=True, temperature=0.7, top_p=0.9
    )
    model.save_pretrained(folder)
    ENDINGS["gemma"].tokenizer().save_pretrained(folder)
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (folder.parent / "prompts.jsonl").write_text(rows)
    return folder


def test_evaluation_stops_where_plain_generation_does(policy: Path, tmp_path: Path) -> None:
    """The very tokens of `generate()`, which stops at the ids of generation_config.json."""
    result = run_script("eval/generate.py", flags(
        policy=f"p={policy}", reference_model=policy, data=policy.parent / "prompts.jsonl", max_new_tokens=LENGTH,
        output_dir=tmp_path / "eval",
    ))  # fmt: skip
    assert result.code == 0, result.stderr
    rows = {row["prompt"]: row for row in map(json.loads, (tmp_path / "eval/responses/p.jsonl").open())}
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.padding_side = "left"
    turns = lambda text: [{"role": "user", "content": text}]
    ordered = sorted(PROMPTS, key=lambda text: len(encode_prompt(tokenizer, turns(text))))
    texts = [tokenizer.apply_chat_template(turns(t), tokenize=False, add_generation_prompt=True) for t in ordered]
    asked = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(policy)
    last: list[int] = []
    torch.manual_seed(42)
    answered = model.generate(**asked, max_new_tokens=LENGTH, temperature=1.0, top_k=0, top_p=1.0)
    for prompt, ids in zip(ordered, answered[:, asked["input_ids"].shape[1] :].tolist(), strict=True):
        ends = [number for number, token in enumerate(ids, start=1) if token in (EOS, END)]
        length, found = ends[0] if ends else LENGTH, rows[prompt]
        assert (found["length"], found["finished"]) == (length, bool(ends))
        assert found["response"] == tokenizer.decode(ids[:length], skip_special_tokens=True)
        last.append(ids[length - 1])
    assert END in last and not {*last} <= {EOS, END}


def test_training_masks_and_exports_every_end(policy: Path, tmp_path: Path) -> None:
    """A rollout's responses end at the second id; the exported folder keeps both, and its own way of sampling."""
    result = run_script(STEP3, flags(
        actor_model=policy, reward_function="conciseness=examples.reward_functions:conciseness", algorithm="ppo",
        data=policy.parent / "prompts.jsonl", max_prompt_length=64, max_new_tokens=LENGTH,
        per_device_prompt_batch_size=12, per_device_train_batch_size=12, max_steps=2, num_train_epochs=2,
        output_dir=tmp_path / "policy", checkpoint_interval=1, keep_checkpoints=True,
    ))  # fmt: skip
    assert result.code == 0, result.stderr
    steps = read_metrics(tmp_path / "policy")
    assert all((step["eos_rate"] > 0) == (step["response_length"] < LENGTH) for step in steps)
    assert any(0 < step["eos_rate"] < 1 for step in steps)
    exported = run_script(
        "utils/export_checkpoint.py", [str(tmp_path / "policy"), "--output_dir", str(tmp_path / "now")]
    )
    assert exported.code == 0, exported.stderr
    for folder in (tmp_path / "policy", tmp_path / "now"):
        generation = json.loads((folder / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [EOS, END]
        assert (generation["temperature"], generation["top_p"], generation["do_sample"]) == (0.7, 0.9, True)
        assert "max_new_tokens" not in generation and "top_k" not in generation
        assert end_ids(load_tokenizer(str(folder), "")) == [EOS, END]


def test_a_reply_is_learned_up_to_the_end_of_its_turn(policy: Path) -> None:
    """Not up to an EOS behind it, which no policy would say after it has ended its turn."""
    tokenizer, question = load_tokenizer(str(policy), ""), [{"role": "user", "content": "Why?"}]
    plain = AutoTokenizer.from_pretrained(policy)
    assert encode_response(tokenizer, question, "So.") == [*plain("So.", add_special_tokens=False)["input_ids"], END]
    assert encode_response(plain, question, "So.")[-3:] == [
        END,
        *plain("\n", add_special_tokens=False)["input_ids"],
        EOS,
    ]
    cut = encode_response(tokenizer, question, "So.", finished=False)
    assert cut == plain("So.", add_special_tokens=False)["input_ids"]


def test_chat_ends_an_answer_there(policy: Path) -> None:
    """What `--greedy` says is what plain greedy generation says up to the second id."""
    chat = [sys.executable, "eval/chat.py", "--policy", f"p={policy}", "--greedy", "--max_new_tokens", str(LENGTH)]
    questions = PROMPTS[:6]
    lines = "".join(f"{question}\\n/reset\\n" for question in questions)
    result = run_command(["bash", "-c", f"printf '{lines}' | {' '.join(chat)}"])
    assert result.code == 0, result.stderr
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    lengths = []
    for question in questions:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = model.generate(**asked, max_new_tokens=LENGTH, do_sample=False, temperature=None, top_p=None)[0]
        said = tokenizer.decode(ids[asked["input_ids"].shape[1] :], skip_special_tokens=True)
        lengths.append(len(ids) - asked["input_ids"].shape[1])
        assert printable_part(said) in result.stdout
    assert min(lengths) < LENGTH


def printable_part(text: str) -> str:
    """The longest stretch of letters that a terminal shows as they are."""
    return max("".join(c if c.isascii() and c.isprintable() else "\n" for c in text).split("\n"), key=len)


def test_only_special_tokens_of_the_tokenizer_end_a_response(tmp_path: Path) -> None:
    """A configuration without EOS has the default of its class, which here is an ordinary token: "!" ends nothing."""
    row = next(a for a in architectures.ARCHITECTURES if a.name == "llama")
    model = architectures.random_model(AutoModelForCausalLM, row.config())
    model.save_pretrained(tmp_path)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = architectures.tokenizer(template, ("<eos>",), eos_token="<eos>")
    tokenizer.save_pretrained(tmp_path)
    mark = tokenizer.convert_tokens_to_ids("!")
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": mark, "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    read = load_tokenizer(str(tmp_path), "")
    assert end_ids(read) == [0] and response_text(read, [*read("Yes!")["input_ids"]]) == "Yes!"


@pytest.mark.parametrize("settings", [
    {"temperature": 0.6}, {"early_stopping": True}, {"length_penalty": 2.0},
    {"temperature": 0.0}, {"do_sample": False, "top_p": 0.9},
    {"do_sample": True, "temperature": 0.7, "length_penalty": 1.2},
], ids=str)  # fmt: skip
def test_settings_that_transformers_would_not_write(policy: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """It loads them all the same; an export keeps what a folder may hold, and the ends."""
    folder = Path(shutil.copytree(policy, tmp_path / "policy"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, END], **settings}))
    model, tokenizer = load_causal_lm(str(folder), ""), load_tokenizer(str(folder), "")
    export_model(model, tokenizer, tmp_path / "out")
    describe_model(model, tokenizer, tmp_path / "described")
    for written in (tmp_path / "out", tmp_path / "described"):
        found = json.loads((written / "generation_config.json").read_text())
        assert found["eos_token_id"] == [EOS, END] and found.get("do_sample") == settings.get("do_sample")
        assert ("temperature" in found) == bool(settings.get("do_sample"))
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [EOS, END]
