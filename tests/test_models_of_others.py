"""Language models of others, as a stage starts from them: buffers, padding, heads, attention."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests import architectures
from tests.cases import cases
from tests.helpers import STEP3, Result, flags, run_script
from tests.test_architectures import STAGE, write_data
from tests.test_export_checkpoint import KEPT, check_same_files, exported
from tests.test_turn_endings import ENDINGS
from utils.models.loading import load_causal_lm, new_score_model
from utils.models.lora import check_targets

pytestmark = pytest.mark.slow

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"  # a buffer of DeepSeek-V3, which is stored


def make(name: str, folder: Path) -> Path:
    return architectures.make_language_model(row_of(name), folder)


def row_of(name: str) -> architectures.Architecture:
    return next(row for row in architectures.ARCHITECTURES if row.name == name)


@pytest.mark.parametrize(("stage", "dtype", "lora"), cases(
    [(0, "bf16", 0), (2, "fp32", 0), (3, "fp32", 0), (3, "fp32", 2)], always=[(0, "bf16", 0), (3, "fp32", 2)]
))  # fmt: skip
def test_buffers_go_along(tmp_path: Path, stage: int, dtype: str, lora: int) -> None:
    """What routes tokens to experts is exported as it was, by the run and from its checkpoint, on two ranks."""
    base = make("deepseek_v3", tmp_path / "base")
    write_data(tmp_path)
    result = run_script(STEP3, flags(
        actor_model=base, reward_function="conciseness=examples.reward_functions:conciseness", algorithm="ppo",
        data=tmp_path / "sft.jsonl", max_prompt_length=64, max_new_tokens=6, per_device_prompt_batch_size=2,
        per_device_train_batch_size=2, actor_learning_rate=1e-2, num_warmup_steps=0, max_steps=1, zero_stage=stage,
        dtype=dtype, lora_dim=lora, output_dir=tmp_path / "run", **KEPT,
    ), ranks=2)  # fmt: skip
    assert result.code == 0, result.stderr
    assert ("the experts get no adapters" in result.stdout) == bool(lora)
    made = exported(tmp_path / "run", tmp_path / "now")
    assert made.code == 0, made.stderr
    check_same_files(tmp_path / "run", tmp_path / "now")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    assert before.keys() == after.keys() and after[BIAS].equal(before[BIAS]) and before[BIAS].std() > 0.1
    assert not after["model.layers.0.self_attn.o_proj.weight"].equal(before["model.layers.0.self_attn.o_proj.weight"])


def test_no_row_is_frozen_by_padding(tmp_path: Path) -> None:
    """A tokenizer without a pad token pads with EOS: its row is trained all the same, in what is loaded and onwards."""
    base = make("llama", tmp_path / "base")
    tokenizer = ENDINGS["llama3, no pad"].tokenizer()
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"pad_token_id": tokenizer.eos_token_id}
    (base / "config.json").write_text(json.dumps(config))
    ids = torch.tensor([[5, tokenizer.eos_token_id, 7]])
    for model in (load_causal_lm(str(base), ""), new_score_model(str(base), "")):
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
        assert model.get_input_embeddings().weight.grad[tokenizer.eos_token_id].abs().max() > 0
    write_data(tmp_path)
    start = base
    for step, data in (("step1_sft", "sft"), ("step2_reward", "pairs")):
        result = run_script(f"{step}/main.py", flags(
            model_name_or_path=start, data=tmp_path / f"{data}.jsonl", validation_data=tmp_path / f"{data}.jsonl",
            output_dir=tmp_path / data, **({"objective": "h", "kind": "reward"} if data == "pairs" else {}), **STAGE,
        ))  # fmt: skip
        assert result.code == 0, result.stderr
        rows = [
            load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in (start, tmp_path / data)
        ]
        moved = (rows[0] - rows[1]).abs().amax(dim=-1)
        assert moved[tokenizer.eos_token_id] > 1e-4 and moved[ord("z")] == 0  # of a letter that no text holds
        start = tmp_path / data


def test_attention_as_asked(tmp_path: Path) -> None:
    """`--attn_implementation` reaches the model: two that compute the same, and one that there is not."""
    base = make("llama", tmp_path / "base")
    write_data(tmp_path)

    def generate(name: str) -> Result:
        return run_script("eval/generate.py", flags(
            policy=f"{name}={base}", reference_model=base, data=tmp_path / "sft.jsonl", max_new_tokens=4,
            attn_implementation=name, output_dir=tmp_path / "eval",
        ))  # fmt: skip

    for name in ("eager", "sdpa"):
        assert generate(name).code == 0
    found = [(tmp_path / f"eval/responses/{name}.jsonl").read_text() for name in ("eager", "sdpa")]
    assert [json.loads(line)["response"] for line in found[0].splitlines()] == [
        json.loads(line)["response"] for line in found[1].splitlines()
    ]
    refused = generate("thought")
    assert refused.code == 2 and "--attn_implementation thought" in refused.stderr and refused.stderr.count("\n") == 1


def test_adapters_of_a_vision_model_are_in_its_decoder(tmp_path: Path) -> None:
    base = make("gemma3_vision", tmp_path / "base")
    write_data(tmp_path)
    check_targets(load_causal_lm(str(base), ""), ["q_proj"])
    result = run_script(STEP3, flags(
        actor_model=base, reward_function="conciseness=examples.reward_functions:conciseness", algorithm="ppo",
        data=tmp_path / "sft.jsonl", max_prompt_length=64, max_new_tokens=6, per_device_prompt_batch_size=2,
        per_device_train_batch_size=2, actor_learning_rate=1e-2, num_warmup_steps=0, max_steps=2, zero_stage=2,
        lora_dim=2, output_dir=tmp_path / "run",
    ), ranks=2)  # fmt: skip
    assert result.code == 0, result.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys() and changed and not any("vision" in name for name in changed)


def test_a_stateful_model_that_reads_padding_is_refused(tmp_path: Path) -> None:
    """RWKV has no attention mask: its state would begin with the padding."""
    config = AutoConfig.for_model("rwkv", vocab_size=272, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    architectures.random_model(AutoModelForCausalLM, config).save_pretrained(tmp_path / "rwkv")
    architectures.tokenizer().save_pretrained(tmp_path / "rwkv")
    write_data(tmp_path)
    result = run_script("step1_sft/main.py", flags(
        model_name_or_path=tmp_path / "rwkv", data=tmp_path / "sft.jsonl", output_dir=tmp_path / "sft", **STAGE
    ))  # fmt: skip
    assert result.code == 2 and "RwkvForCausalLM reads padding" in result.stderr
    assert AutoTokenizer.from_pretrained(tmp_path / "rwkv").chat_template
