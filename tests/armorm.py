"""Score models in ArmoRM's released format, written from its description: random Llama, heads by hand."""

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerBase

ATTRIBUTES, HIDDEN, LAYERS, SIZE, TEMPERATURE = 19, 24, 3, 32, 3.0


def write_armorm(folder: Path, tokenizer: PreTrainedTokenizerBase, **config: Any) -> dict[str, torch.Tensor]:
    """A checkpoint with weights of every size that matters; returns its heads."""
    torch.manual_seed(11)
    llama = LlamaConfig(vocab_size=len(tokenizer), hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=2, intermediate_size=40, pad_token_id=tokenizer.pad_token_id,
                        max_position_embeddings=256)  # fmt: skip
    trunk = LlamaModel(llama)
    sizes = [SIZE, *[HIDDEN] * LAYERS, ATTRIBUTES]
    heads = {"regression_layer.weight": torch.randn(ATTRIBUTES, SIZE),
             "reward_transform_matrix": torch.eye(ATTRIBUTES) + 0.3 * torch.randn(ATTRIBUTES, ATTRIBUTES),
             "gating.logit_scale": torch.tensor([1.7])}  # fmt: skip
    for number, (inside, outside) in enumerate(zip(sizes, sizes[1:], strict=False)):
        heads[f"gating.layers.{number}.weight"] = 2 * torch.randn(outside, inside) / inside**0.5
        heads[f"gating.layers.{number}.bias"] = torch.randn(outside)
    weights = {f"model.{name}": tensor for name, tensor in trunk.state_dict().items()}
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in (weights | heads).items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    described = llama.to_dict() | {
        "architectures": ["LlamaForRewardModelWithGating"], "num_objectives": ATTRIBUTES,
        "gating_temperature": TEMPERATURE, "gating_hidden_dim": HIDDEN, "gating_n_hidden": LAYERS,
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described | config))
    (folder / "modeling_custom.py").write_text("raise RuntimeError('code of a model folder was run')\n")
    tokenizer.save_pretrained(folder)
    return heads


@torch.no_grad()
def by_hand(folder: Path, heads: dict[str, torch.Tensor], ids: list[int], at: int) -> tuple[numpy.ndarray, ...]:
    """(gated score, rewards [m], contributions [m]) at the end of `ids`, the gate reading at index `at`; float64."""
    trunk, info = LlamaModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    hidden = trunk.eval()(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in heads.items()}
    rewards = weights["regression_layer.weight"] @ hidden[-1]
    x = hidden[at]
    for number in range(LAYERS + 1):
        x = weights[f"gating.layers.{number}.weight"] @ x + weights[f"gating.layers.{number}.bias"]
        x = numpy.maximum(x, 0) if number < LAYERS else x
    x = numpy.exp(x / TEMPERATURE - (x / TEMPERATURE).max())
    gate = x / x.sum() * weights["gating.logit_scale"]
    transform = weights["reward_transform_matrix"]
    score = numpy.sum(gate * (rewards @ transform))
    return score, rewards, (transform @ gate) * rewards


def pattern_of(folder: Path) -> list[int]:
    """What a template like Llama 3's writes between a prompt and its reply."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer("<|eot|><|start|>assistant<|end|>\n\n", add_special_tokens=False)["input_ids"]


def rows_by_hand(
    folder: Path, heads: dict[str, torch.Tensor], rows: list[dict[str, Any]]
) -> list[tuple[numpy.ndarray, ...]]:
    """`by_hand` of dialogues with 'messages', 'response' and 'finished', from their text as the template writes it."""
    tokenizer, pattern, found = AutoTokenizer.from_pretrained(folder), pattern_of(folder), []
    for row in rows:
        response = row["response"]
        text = tokenizer.apply_chat_template(
            [*row["messages"], {"role": "assistant", "content": response}], tokenize=False
        )
        text = text if row["finished"] else text[: text.rindex(response) + len(response)]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = [i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern]
        found.append(by_hand(folder, heads, ids, starts[-1]))
    return found
