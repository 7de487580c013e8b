"""Loading policies, reward and cost models and tokenizers; the score head on every token; exporting."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from utils.errors import UserError

disable_progress_bar()  # loading bars of seven models drown everything else

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_config(path: str, flag: str) -> Any:
    """Model configuration of a folder or hub name.

    Raises:
        UserError: nothing there that describes a model; names `flag`.
    """
    folder = Path(path)
    is_local = folder.exists() or path.startswith((".", "/")) or (folder.parent != Path(".") and folder.parent.is_dir())
    if is_local and not (folder / "config.json").is_file():
        raise UserError(f"{flag} {path}: no such model (a folder with a config.json, or a hub name)")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path}: cannot read the model configuration ({first_line(error)})") from None


def load_tokenizer(path: str, flag: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder or hub name; a missing pad token falls back to EOS (masks come from lengths).

    Raises:
        UserError: no tokenizer there, or one without EOS; names `flag`.
    """
    load_config(path, flag)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path}: cannot read the tokenizer ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{flag} {path}: the tokenizer has no EOS token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Long texts are measured against the stages' own limits; the library's warning about its limit only confuses.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether both turn every dialogue into the same ids."""
    return a.get_vocab() == b.get_vocab() and a.chat_template == b.chat_template


def load_causal_lm(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Language model with its head, dropout switched off.

    Raises:
        UserError: no language model there; names `flag`.
    """
    check_causal_lm(path, flag)
    return _load(AutoModelForCausalLM, path, flag, dtype)


def check_causal_lm(path: str, flag: str) -> None:
    """Make sure, before any weight is read, that a model is not a reward or cost model.

    Raises:
        UserError: it is one, or nothing is there; names `flag`.
    """
    config = load_config(path, flag)
    if is_score_model(config):
        raise UserError(f"{flag} {path}: this is {config.architectures[0]}, not a language model")


def load_score_model(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Reward or cost model: `AutoModelForSequenceClassification` with one label and a `score` head.

    Raises:
        UserError: the folder holds something else, such as a language model; names `flag`.
    """
    check_score_model(path, flag)
    return _load(AutoModelForSequenceClassification, path, flag, dtype)


def new_score_model(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Score model with a new one-label head on the trunk of any decoder, the start of stage 2.

    Raises:
        UserError: see `check_decoder`.
    """
    check_decoder(path, flag)
    return _load(AutoModelForSequenceClassification, path, flag, dtype, num_labels=1)


def check_decoder(path: str, flag: str) -> None:
    """Make sure, before any weight is read, that a model can score every token.

    Raises:
        UserError: the architecture has no sequence classifier with a `score` head; names `flag`.
    """
    config = load_config(path, flag)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UserError(f"{flag} {path}: transformers has no sequence classifier for {config.model_type}") from None
    if not hasattr(model, "score"):
        raise UserError(f"{flag} {path}: {type(model).__name__} has no score head on every token (use a decoder)")


def is_score_model(config: Any) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def check_score_model(path: str, flag: str) -> Any:
    """Configuration of a score model, checked before any weight is read.

    Raises:
        UserError: not a sequence classifier with one label; names `flag`.
    """
    config = load_config(path, flag)
    if not is_score_model(config):
        found = (config.architectures or ["a model without a head"])[0]
        raise UserError(f"{flag} {path}: {found} is not a reward or cost model (train one with step2_reward/main.py)")
    if config.num_labels != 1:
        raise UserError(f"{flag} {path}: the score model has {config.num_labels} labels, one is needed")
    check_decoder(path, flag)
    return config


def check_positions(path: str, flag: str, length: int, lengths_flag: str) -> None:
    """Raise UserError if a model has fewer positions than `length` tokens, as `lengths_flag` allows them."""
    positions = getattr(load_config(path, flag), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise UserError(f"{lengths_flag}: {length} tokens, but {flag} {path} has positions for {positions}")


def sampling_config(tokenizer: PreTrainedTokenizerBase, temperature: float, max_new_tokens: int) -> GenerationConfig:
    """Plain sampling at a temperature: a filter such as top-k would make the sampled distribution another one."""
    return GenerationConfig(
        do_sample=True,
        use_cache=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _load(auto_class: Any, path: str, flag: str, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    dropouts = {
        name: 0.0
        for name, value in load_config(path, flag).to_dict().items()
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float)
    }
    try:
        model = auto_class.from_pretrained(path, dtype=dtype, **dropouts, **kwargs)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{flag} {path}: cannot load the model ({first_line(error)})") from None
    model.config.use_cache = False  # generation asks for the cache itself
    return model


def first_line(error: Exception) -> str:
    """The first non-empty line of an error, for one-line messages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions counted from the first real token of each row: [batch, time] mask -> [batch, time] int64."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def score_tokens(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """The score head on every token: [batch, time] ids -> [batch, time] float32.

    transformers' own forward pools at the last token that is not the pad token, which goes wrong as soon as a
    sampled response contains that token; here the caller picks the position.
    """
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state  # [batch, time, hidden]
    return model.score(hidden).squeeze(-1).float()


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a Hugging Face directory: configuration, safetensors, tokenizer with its chat template.

    Args:
        state_dict: gathered weights when `model`'s own parameters are partitioned.
    """
    use_cache, model.config.use_cache = model.config.use_cache, True
    model.config.pad_token_id = tokenizer.pad_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, state_dict=state_dict)
    tokenizer.save_pretrained(directory)
    model.config.use_cache = use_cache
