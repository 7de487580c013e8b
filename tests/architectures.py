"""Tiny random models of many architectures, with a tokenizer of 272 ids: what tests of models of others are built on.

One row an architecture: its `model_type` in transformers and what its configuration needs beside `SIZES`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 272

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512, "head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        model_type: its name in transformers.
        changes: of `SIZES`; None takes a setting away.
        close_to: another row that is nearly the same; the whole table is swept with UPDATE_DOCS alone.
    """

    name: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    close_to: str | None = None

    def config(self) -> Any:
        settings = {name: value for name, value in (SIZES | self.changes).items() if value is not None}
        ids = {"bos_token_id": None, "pad_token_id": SPECIAL.index("<|endoftext|>")}
        ids["eos_token_id"] = SPECIAL.index("<|im_end|>")
        if "text_config" in settings:
            settings["text_config"] = SIZES | ids | settings["text_config"]
            return AutoConfig.for_model(self.model_type, **ids, **{k: v for k, v in settings.items() if k not in SIZES})
        return AutoConfig.for_model(self.model_type, **ids, **settings)


ARCHITECTURES = [
    Architecture("gpt2", "gpt2", {"n_inner": 64}),
    Architecture("gpt_neox", "gpt_neox"),
    Architecture("gptj", "gptj", {"rotary_dim": 4}, close_to="gpt_neox"),
    Architecture("opt", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    Architecture("opt_projected", "opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    Architecture("bloom", "bloom", {"n_head": 4, "n_layer": 2}),
    Architecture("falcon", "falcon", {"head_dim": None}),
    Architecture("falcon_alibi", "falcon", {"alibi": True, "head_dim": None}, close_to="falcon"),
    Architecture("mpt", "mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}, close_to="bloom"),
    Architecture("phi", "phi", {"num_key_value_heads": 4}),
    Architecture("phi3", "phi3", close_to="phi"),
    Architecture("stablelm", "stablelm", close_to="llama"),
    Architecture("llama", "llama"),
    Architecture("llama_tied", "llama", {"tie_word_embeddings": True}, close_to="llama"),
    Architecture("mistral", "mistral", {"sliding_window": 16}),
    Architecture("qwen2", "qwen2"),
    Architecture("qwen3", "qwen3"),
    Architecture("gemma", "gemma", close_to="gemma2"),
    Architecture("gemma2", "gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    Architecture("gemma3_text", "gemma3_text", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    Architecture(
        "gemma3_vision", "gemma3",
        {"text_config": {"sliding_window": 16}, "vision_config": VISION, "mm_tokens_per_image": 1,
         "image_token_index": 270, "boi_token_index": 268, "eoi_token_index": 269},
    ),
    Architecture("cohere", "cohere", {"logit_scale": 1.0}),
    Architecture("granite", "granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    Architecture("olmo2", "olmo2", close_to="llama"),
    Architecture("mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("qwen3_moe", "qwen3_moe", {"num_experts": 4} | EXPERTS),
    Architecture("deepseek_v3", "deepseek_v3",
                 {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
                  "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": None} | EXPERTS | LATENT),
    Architecture("glm4_moe", "glm4_moe",
                 {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
                  "first_k_dense_replace": 1} | EXPERTS),
]  # fmt: skip


def tokenizer(template: str = CHATML, special: tuple[str, ...] = SPECIAL, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, behind the special tokens; ends turns in `<|im_end|>` and a line break, as ChatML does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate([*special, *letters])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = named or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=list(special), **named)
    made.chat_template = template
    return made


def random_model(auto_class: Any, config: Any, seed: int = 0, spread: float = 4.0) -> PreTrainedModel:
    """A model from random initialization whose matrices are `spread` times as large, so that positions matter."""
    torch.manual_seed(seed)
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
        for name, buffer in model.named_buffers():
            if name in model.state_dict():  # such as what routes tokens to experts
                buffer.copy_(torch.linspace(-1, 1, buffer.numel()).view_as(buffer))
    return model.eval()


def make_language_model(architecture: Architecture, folder: Path) -> Path:
    """The folder of a random language model with its tokenizer."""
    random_model(AutoModelForCausalLM, architecture.config(), spread=4.0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def make_classifier(architecture: Architecture, folder: Path, labels: int = 1) -> Path:
    """The folder of a random score model with its tokenizer."""
    config = architecture.config()
    config.num_labels = labels
    random_model(AutoModelForSequenceClassification, config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
