"""Architectures of the table through the three stages, against plain transformers.

docs/models.md holds the table of what came out; `UPDATE_DOCS=1 bash tests/run.sh --all -k architectures` writes it
anew, and takes those that are nearly the same as another one, too.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tests.architectures import ARCHITECTURES, Architecture, make_language_model
from tests.cases import cases
from tests.helpers import ROOT, STEP3, Result, flags, run_script
from utils.data.batching import left_pad, right_pad
from utils.data.encoding import encode_prompt
from utils.models.configs import load_tokenizer, sampling_config
from utils.models.loading import load_causal_lm
from utils.policy.forward import response_log_probs
from utils.scoring.objectives import Objective

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs/models.md"
SWEPT = [row for row in ARCHITECTURES if row.close_to is None or os.environ.get("UPDATE_DOCS")]
ALWAYS = [row for row in SWEPT if row.name in (
    "gpt2", "bloom", "mistral", "gemma3_vision", "deepseek_v3",
)]  # fmt: skip
QUESTIONS = ["How do I make a pie?", "Why?", "Tell me how to fix my old lamp.", "Grow a tulip?"]
ANSWERS = ["Add water to the pie.", "No.", "Switch off the lamp.", "Put it in soil."]
RESPONSE = 9  # tokens
STAGE = {"per_device_train_batch_size": 2, "learning_rate": 1e-3, "num_warmup_steps": 0, "max_length": 160}


@pytest.mark.parametrize("architecture", cases(SWEPT, always=ALWAYS), ids=lambda architecture: architecture.name)
def test_three_stages(architecture: Architecture, tmp_path: Path) -> None:
    base = make_language_model(architecture, tmp_path / "base")
    write_data(tmp_path)
    check_language_model(base)
    step1 = run_script("step1_sft/main.py", flags(
        model_name_or_path=base, data=tmp_path / "sft.jsonl", validation_data=tmp_path / "sft.jsonl",
        output_dir=tmp_path / "sft", **STAGE,
    ))  # fmt: skip
    assert step1.code == 0, step1.stderr
    check_export(base, tmp_path / "sft")
    step2 = run_script("step2_reward/main.py", flags(
        model_name_or_path=tmp_path / "sft", data=tmp_path / "pairs.jsonl", validation_data=tmp_path / "pairs.jsonl",
        objective="helpfulness", kind="reward", output_dir=tmp_path / "reward", **STAGE,
    ))  # fmt: skip
    objectives: dict[str, Any] = {"reward_function": "conciseness=examples.reward_functions:conciseness"}
    if step2.code == 0:
        check_score_model(tmp_path / "reward")
        objectives["reward_model"] = f"helpfulness={tmp_path / 'reward'}"
    step3 = run_script(STEP3, flags(
        actor_model=tmp_path / "sft", **objectives, algorithm="gapo" if step2.code == 0 else "ppo",
        gradient_scope="full" if step2.code == 0 else None, data=tmp_path / "sft.jsonl", max_prompt_length=64,
        max_new_tokens=8, per_device_prompt_batch_size=2, per_device_train_batch_size=2, max_steps=2,
        actor_learning_rate=1e-3, critic_learning_rate=1e-3, num_warmup_steps=0, output_dir=tmp_path / "policy",
    ), pictures=False)  # fmt: skip
    assert step3.code == 0, step3.stderr
    check_export(base, tmp_path / "policy")
    check_documented(architecture, base, step2)


def write_data(folder: Path) -> None:
    """Four dialogues and four pairs."""
    dialogues = [{"prompt": q, "response": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    pairs = [{"prompt": q, "chosen": a, "rejected": "Never."} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    for name, rows in (("sft", dialogues), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def check_language_model(base: Path) -> None:
    """Left-padded as here, log-probabilities and greedy tokens are those of plain transformers without padding."""
    model, plain = load_causal_lm(str(base), ""), AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = load_tokenizer(str(base), "")
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    ids, mask = left_pad(prompts, tokenizer.pad_token_id)
    settings = sampling_config(tokenizer, 1.0, RESPONSE)
    settings.do_sample, settings.temperature, settings.top_k, settings.top_p = False, None, None, None
    settings.min_new_tokens = RESPONSE  # all responses of one length
    together = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    whole = torch.cat([mask, torch.ones(len(prompts), RESPONSE, dtype=torch.int64)], dim=1)
    found = response_log_probs(model, together, whole, RESPONSE, 1.0)
    for row, prompt in enumerate(prompts):
        alone = plain.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            generation_config=settings,
        )  # fmt: skip
        assert alone[0, -RESPONSE:].tolist() == together[row, -RESPONSE:].tolist()
        logits = plain(input_ids=alone).logits[0, -RESPONSE - 1 : -1].log_softmax(dim=-1)
        expected = logits.gather(-1, alone[0, -RESPONSE:, None]).squeeze(-1)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)
    assert found.std() > 1e-3  # of something


def check_export(base: Path, folder: Path) -> None:
    """The folder holds what `save_pretrained` writes of the model, buffers included, and what loading it gives."""
    expected, found = stored(base), stored(folder)
    assert {name: (t.shape, t.dtype) for name, t in expected.items()} == {
        n: (t.shape, t.dtype) for n, t in found.items()
    }
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    check_saved_again(model, folder)
    buffers = {name for name in model.state_dict() if name not in dict(model.named_parameters(remove_duplicate=False))}
    assert all(found[name].equal(expected[name]) for name in buffers & found.keys())
    assert any(not found[name].equal(expected[name]) for name in found)  # trained


def check_saved_again(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder / "again")
    again, found = stored(folder / "again"), stored(folder)
    assert again.keys() == found.keys() and all(again[name].equal(found[name]) for name in found)


@torch.no_grad()
def check_score_model(folder: Path) -> None:
    """Right-padded as here, scores are those of transformers' own forward pass without padding, at the last token."""
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    check_saved_again(plain, folder)
    model = Objective("helpfulness", "reward", str(folder)).load_model()
    rows = [model.encode([{"role": "user", "content": q}], a, True)[0] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    ids, mask = right_pad(rows, model.tokenizer.pad_token_id)
    scores = model.module(ids, mask).squeeze(-1)
    expected = [plain.eval()(input_ids=torch.tensor([row])).logits.item() for row in rows]
    found = [scores[row, length - 1].item() for row, length in enumerate(mask.sum(dim=-1).tolist())]
    assert found == pytest.approx(expected, abs=1e-5)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def check_documented(architecture: Architecture, base: Path, step2: Result) -> None:
    """docs/models.md has the row of this run; with UPDATE_DOCS it gets it."""
    assert step2.code in (0, 2), step2.stderr
    refusal = "" if step2.code == 0 else step2.stderr.strip().rpartition(": ")[2]
    assert refusal in ("", f"transformers has no sequence classifier for {architecture.model_type}")
    model = json.loads((base / "config.json").read_text())["architectures"][0]
    row = f"| {architecture.name} | {model} | yes | {refusal or 'yes'} | yes |"
    lines = DOCS.read_text().splitlines() if DOCS.exists() else []
    if os.environ.get("UPDATE_DOCS"):
        lines = with_row(lines, architecture.name, row)
        DOCS.write_text("\n".join(lines) + "\n")
    assert row in lines, row


def with_row(lines: list[str], name: str, row: str) -> list[str]:
    """The lines with one row of the first table changed, or added behind its last one."""
    end = start = lines.index("| architecture | model | step 1 | step 2 | step 3 |")
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    others = [line for line in lines[start:end] if not line.startswith(f"| {name} |")]
    return [*lines[:start], *others, row, *lines[end:]]
