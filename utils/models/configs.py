"""What a model's folder says without its weights: configuration, tokenizer, settings; what it may execute."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.cli.hub import describe_hub_error, is_local, source_of
from utils.data.encoding import end_ids, set_end_ids
from utils.engines.arrival import shape_of
from utils.models.adapter_folder import (
    are_hub_adapters,
    base_of,
    has_tokenizer,
    is_adapter_folder,
)
from utils.process.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NEW_HEAD = ("score.weight",)  # what stage 2 adds to a language model
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # how names of their classes end


@dataclass
class Permissions:
    """What foreign model folders may do in this process, and how their attention is computed."""

    trust_remote_code: bool = False
    allow_pickle: bool = False
    missing_weights: bool = False  # in a dry run
    attention: str | None = None  # None: what transformers chooses


permissions = Permissions()  # set by `allow` alone, so that no loading function can be called with more


def allow(args: argparse.Namespace) -> None:
    """Grant what `utils.cli.arguments.add_loading_arguments` read; called once, right after parsing."""
    permissions.trust_remote_code, permissions.allow_pickle = args.trust_remote_code, args.allow_pickle
    permissions.missing_weights = getattr(args, "dry_run", False)
    permissions.attention = args.attn_implementation


def load_config(path: str, flag: str) -> Any:
    """Model configuration of a folder or hub name (`NAME@REVISION` names a commit, tag or branch).

    Adapters without a configuration beside them have that of their base.

    Raises:
        UserError: nothing there that describes a model, or one that runs its own code; names `flag`.
    """
    if is_adapter_folder(path) and not (Path(path) / "config.json").is_file():
        return load_config(base_of(path, flag), f"{flag} {path}: its base")
    if is_local(path) and not (Path(path) / "config.json").is_file():
        raise UserError(f"{flag} {path}: no such model (a folder with a config.json, or a hub name)")
    try:
        config = AutoConfig.from_pretrained(**source_of(path), trust_remote_code=permissions.trust_remote_code)
        parts = config, config.get_text_config()
    except Exception as error:  # what transformers lets through for a damaged file is of many types
        if are_hub_adapters(path):
            raise UserError(
                f"{flag} {path}: adapters are read from folders alone (hf download NAME --local-dir FOLDER)"
            ) from None
        raise unreadable(path, flag, "the model configuration", error) from None
    architectures = config.architectures
    if not isinstance(architectures, list | None) or not all(isinstance(name, str) for name in architectures or ()):
        raise UserError(f"{flag} {path}: the architectures in config.json are no names: {architectures}")
    for part in parts:
        for name in ("pad_token_id", "vocab_size", "max_position_embeddings"):
            if not isinstance(getattr(part, name, None), int | None):
                raise UserError(f"{flag} {path}: {name} in config.json is no whole number: {getattr(part, name)!r}")
    return config


def embedding_rows(model: PreTrainedModel | None) -> int | None:
    """How many ids a model, if there is one, has embeddings for."""
    return None if model is None else shape_of(model.get_input_embeddings().weight)[0]


def positions_of(config: Any) -> int | None:
    """Tokens that a model's decoder has positions for; None without a limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def unreadable(path: str, flag: str, what: str, error: Exception) -> UserError:
    """The error of a model that transformers could not read, with what would permit it."""
    if reason := None if is_local(path) else describe_hub_error(error):
        return UserError(f"{flag} {path}: {reason}")
    if not permissions.trust_remote_code and "trust_remote_code" in str(error):
        return UserError(f"{flag} {path}: brings program code of its own, which only --trust_remote_code runs")
    if not permissions.allow_pickle and "safetensors" in str(error):
        return UserError(f"{flag} {path}: no safetensors there (pickled weights are read with --allow_pickle alone)")
    return UserError(f"{flag} {path}: cannot read {what} ({first_line(error)})")


def load_tokenizer(
    path: str, flag: str, needs_eos: bool = True, model: tuple[str, str] | None = None
) -> PreTrainedTokenizerBase:
    """Tokenizer of a model folder or hub name; a missing pad token falls back to EOS (masks come from lengths).

    Adapters without a tokenizer beside them have that of their base. What may end a response (`end_ids`) is what the
    tokenizer, config.json and generation_config.json name.

    Args:
        model: path and flag of the model that it is used with, where that is not `path`.

    Raises:
        UserError: no tokenizer there, or one without EOS; names `flag`.
    """
    if is_adapter_folder(path) and not has_tokenizer(path):
        return load_tokenizer(base_of(path, flag), f"{flag} {path}: its base", needs_eos, model or (path, flag))
    model_path, model_flag = model or (path, flag)
    load_config(path, flag)
    config, generation = load_config(model_path, model_flag), load_generation_config(model_path, model_flag)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source_of(path), trust_remote_code=permissions.trust_remote_code)
    except Exception as error:  # as above
        raise unreadable(path, flag, "the tokenizer", error) from None
    if tokenizer.eos_token_id is None and (needs_eos or tokenizer.pad_token_id is None):
        raise UserError(f"{flag} {path}: the tokenizer has no {'EOS' if needs_eos else 'pad'} token")
    rows = getattr(config.get_text_config(), "vocab_size", None)
    beyond = rows is not None and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows
    if tokenizer.pad_token_id is None or (beyond and tokenizer.eos_token_id is not None):
        tokenizer.pad_token = tokenizer.eos_token
    set_end_ids(tokenizer, [generation, config, config.get_text_config()])
    # Long texts are measured against the stages' own limits; the library's warning about its limit only confuses.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_generation_config(path: str, flag: str) -> GenerationConfig | None:
    """What a folder or hub name says about generation, if anything.

    Raises:
        UserError: a folder's generation_config.json cannot be read; names `flag`.
    """
    if is_local(path) and not (Path(path) / "generation_config.json").is_file():
        return load_generation_config(base_of(path, flag), flag) if is_adapter_folder(path) else None
    try:
        return GenerationConfig.from_pretrained(**_named_source(path))
    except Exception as error:  # as in `load_config`
        if not is_local(path):  # it has none, or nobody can be asked
            return None
        raise unreadable(path, flag, "generation_config.json", error) from None


def _named_source(path: str) -> dict[str, Any]:
    """`source_of`, as GenerationConfig calls it."""
    source = dict(source_of(path))
    return {"pretrained_model_name": source.pop("pretrained_model_name_or_path")} | source


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether both turn every dialogue into the same ids: equal vocabularies, rules of splitting, chat templates."""
    if a.get_vocab() != b.get_vocab() or a.chat_template != b.chat_template:
        return False
    return _splitting_rules(a) == _splitting_rules(b)


def _splitting_rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides how text is cut into tokens, merges included; nothing known of a tokenizer in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    return {name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "model")}


def language_model_class(config: Any) -> Any:
    """transformers' Auto class of a language model; some with a vision tower are found under another one."""
    reads_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder
    if reads_images and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def is_score_model(config: Any) -> bool:
    """Whether the configuration is that of a classifier, or of a score model of Safe RLHF or ArmoRM."""
    names = config.architectures or ()
    return any("ForSequenceClassification" in n or n.endswith(("ForScore", "ForRewardModelWithGating")) for n in names)


def skeleton(auto_class: Any, config: Any, path: str, flag: str) -> PreTrainedModel:
    """The model without memory for its parameters, on the meta device.

    Raises:
        UserError: the configuration describes no such model.
    """
    text = config.get_text_config()
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and size is not None and pad >= size:
        raise UserError(f"{flag} {path}: pad_token_id {pad} lies outside the vocabulary of {size}")
    try:
        with torch.device("meta"):
            return auto_class.from_config(config, trust_remote_code=permissions.trust_remote_code, **attention_option())
    except Exception as error:  # the sizes of a configuration may contradict each other in many ways
        kind = "sequence classifier" if auto_class is AutoModelForSequenceClassification else "language model"
        if permissions.attention is not None and "attention" in str(error).lower().replace("attn", "attention"):
            raise UserError(
                f"--attn_implementation {permissions.attention}: none that {flag} {path} has ({first_line(error)})"
            ) from None
        if "Unrecognized configuration class" in str(error):
            raise UserError(f"{flag} {path}: transformers has no {kind} for {config.model_type}") from None
        raise UserError(
            f"{flag} {path}: config.json ({config.model_type}) makes no {kind} ({first_line(error)})"
        ) from None


def attention_option() -> dict[str, str]:
    """`--attn_implementation`, as transformers takes it."""
    return {} if permissions.attention is None else {"attn_implementation": permissions.attention}


def and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} other{'s' * (len(names) > 2)}" if len(names) > 1 else ""


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
        eos_token_id=end_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def first_line(error: Exception) -> str:
    """The first non-empty line of an error, for one-line messages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
