"""Loading policies, reward and cost models and tokenizers; the score head on every token; exporting.

A model folder is foreign until the command line says otherwise: program code in it is not run, and pickled weights,
which can hold code, are not read (`allow`). The `check_` functions tell what is wrong with a folder from its
configuration, its tokenizer and the headers of its weights, so that a mistake in the last of seven models is known
before the first one is loaded.
"""

import argparse
import functools
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
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
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from utils.cli.hub import describe_hub_error, is_local, source_of
from utils.data.encoding import encode_dialogue, end_ids, set_end_ids
from utils.engines.arrival import agreed, arrival, arriving, shape_of, share_buffers, whole
from utils.models.adapter_folder import (
    are_hub_adapters,
    base_of,
    check_adapters,
    has_tokenizer,
    is_adapter_folder,
    merge_adapters,
    needs_whole_base,
)
from utils.models.fingerprint import find_tensors
from utils.models.stored_tensors import one_by_one, stored_tensors, weights_folder
from utils.models.stored_weights import StoredWeights, layers_beyond, stored_weights
from utils.process.distributed import print_main
from utils.process.errors import UserError

disable_progress_bar()  # loading bars of seven models drown everything else
set_verbosity_error()  # what its warnings are about ends in an error here, or is no news (the head that stage 2 adds)

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


_permissions = Permissions()  # set by `allow` alone, so that no loading function can be called with more


def allow(args: argparse.Namespace) -> None:
    """Grant what `utils.cli.arguments.add_loading_arguments` read; called once, right after parsing."""
    _permissions.trust_remote_code, _permissions.allow_pickle = args.trust_remote_code, args.allow_pickle
    _permissions.missing_weights = getattr(args, "dry_run", False)
    _permissions.attention = args.attn_implementation


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
        config = AutoConfig.from_pretrained(**source_of(path), trust_remote_code=_permissions.trust_remote_code)
        parts = config, config.get_text_config()
    except Exception as error:  # what transformers lets through for a damaged file is of many types
        if are_hub_adapters(path):
            raise UserError(
                f"{flag} {path}: adapters are read from folders alone (hf download NAME --local-dir FOLDER)"
            ) from None
        raise _unreadable(path, flag, "the model configuration", error) from None
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


def _unreadable(path: str, flag: str, what: str, error: Exception) -> UserError:
    """The error of a model that transformers could not read, with what would permit it."""
    if reason := None if is_local(path) else describe_hub_error(error):
        return UserError(f"{flag} {path}: {reason}")
    if not _permissions.trust_remote_code and "trust_remote_code" in str(error):
        return UserError(f"{flag} {path}: brings program code of its own, which only --trust_remote_code runs")
    if not _permissions.allow_pickle and "safetensors" in str(error):
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
        tokenizer = AutoTokenizer.from_pretrained(**source_of(path), trust_remote_code=_permissions.trust_remote_code)
    except Exception as error:  # as above
        raise _unreadable(path, flag, "the tokenizer", error) from None
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
        raise _unreadable(path, flag, "generation_config.json", error) from None


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


def load_causal_lm(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Language model with its head, dropout switched off; a folder of adapters is merged into its base.

    Raises:
        UserError: no language model there; names `flag`.
    """
    _check_no_score_model(load_config(path, flag), path, flag)
    if is_adapter_folder(path):
        with arriving(None) if needs_whole_base(path) else nullcontext():
            model = load_causal_lm(base_of(path, flag), f"{flag} {path}: its base", dtype)
        try:
            return merge_adapters(model, path)
        except Exception as error:  # as in `load_config`
            raise UserError(f"{flag} {path}: the adapters do not fit ({' '.join(str(error).split())[:200]})") from None
    model = load_model(language_model_class(load_config(path, flag)), path, flag, dtype)
    if getattr(model, "_is_stateful", False) and reads_padding(model):
        raise UserError(f"{flag} {path}: {type(model).__name__} reads padding; batches of prompts come out wrong")
    return model


@torch.no_grad()
def reads_padding(model: PreTrainedModel) -> bool:
    """Whether padding on the left changes what a model says: a recurrent one may take it into its state (RWKV)."""
    arrival().settle()
    here = arrival().device
    model.to(here)  # what has not arrived yet
    ids, mask = torch.tensor([[0, 0, 1, 2]], device=here), torch.tensor([[0, 0, 1, 1]], device=here)
    with whole(*model.parameters()):
        padded = model(input_ids=ids, attention_mask=mask, position_ids=position_ids_from_mask(mask)).logits[0, -1]
        plain = model(input_ids=ids[:, 2:], attention_mask=mask[:, 2:]).logits[0, -1]
    return bool((padded - plain).abs().max() > 0.1 * plain.std())


def language_model_class(config: Any) -> Any:
    """transformers' Auto class of a language model; some with a vision tower are found under another one."""
    reads_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder
    if reads_images and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """A model without its head; a few classes (Llama 4) do not have it under the name that they say."""
    return model.base_model if model.base_model is not model else model.model


def check_causal_lm(path: str, flag: str, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """Make sure, before any weight is read, that there is a language model with its tokenizer and weights.

    Args:
        tokenizer: in place of the model's own.

    Returns:
        The model without memory for its parameters.

    Raises:
        UserError: a reward or cost model, or something is missing, damaged or does not fit; names `flag`.
    """
    config = load_config(path, flag)
    _check_no_score_model(config, path, flag)
    load_generation_config(path, flag)
    tokenizer = tokenizer or load_tokenizer(path, flag)
    if is_adapter_folder(path):
        model = check_causal_lm(base_of(path, flag), f"{flag} {path}: its base", tokenizer)
        check_adapters(model, path, flag)
    else:
        model = skeleton(language_model_class(config), config, path, flag)
        stored = _check_weights(model, path, flag)
        if stored and not config.architectures and NEW_HEAD[0] in stored.unused:
            raise UserError(f"{flag} {path}: holds {NEW_HEAD[0]}: this is a score model, not a language model")
    check_ids(model, tokenizer, check_dialogues(tokenizer, flag), path, flag)
    return model


def _check_no_score_model(config: Any, path: str, flag: str) -> None:
    if is_score_model(config):
        raise UserError(f"{flag} {path}: this is {config.architectures[0]}, not a language model")


def new_score_model(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Score model with one label, the start of stage 2: with a new head on the trunk of any decoder, or as it is.

    Raises:
        UserError: the folder holds no such decoder; names `flag`.
    """
    new = () if is_score_model(load_config(path, flag)) else NEW_HEAD
    return load_model(AutoModelForSequenceClassification, path, flag, dtype, new=new, num_labels=1)


def check_decoder(path: str, flag: str) -> PreTrainedModel:
    """Make sure, before any weight is read, that a model can start stage 2, and has its tokenizer and weights.

    Raises:
        UserError: no decoder with a classifier that has a `score` head; a score model with several labels or under
            another name than `score`; or something is missing, damaged or does not fit.
    """
    config = load_config(path, flag)
    classifies = is_score_model(config)
    if classifies and config.num_labels != 1:
        raise UserError(f"{flag} {path}: the score model has {config.num_labels} labels, stage 2 trains one")
    config.num_labels = 1
    model = skeleton(AutoModelForSequenceClassification, config, path, flag)
    if not hasattr(model, "score"):
        raise UserError(f"{flag} {path}: {type(model).__name__} has no score head on every token (use a decoder)")
    stored = _check_weights(model, path, flag, () if classifies else NEW_HEAD)
    if stored and not classifies:
        _check_other_heads(config, stored.unused, path, flag)
    tokenizer = load_tokenizer(path, flag)
    check_ids(model, tokenizer, check_dialogues(tokenizer, flag), path, flag)
    return model


def _check_other_heads(config: Any, unused: list[str], path: str, flag: str) -> None:
    """Of heads that are stored beside a trunk, a language model's own makes room for a new head; another one does not.

    Raises:
        UserError: the folder is no language model's, and holds a head of a name that is not known.
    """
    model = skeleton(language_model_class(config), config, path, flag)
    others = sorted(set(unused) & set(stored_weights(model, path, flag).unused))
    if not others:
        return
    if any(name.endswith(LANGUAGE_MODELS) for name in config.architectures or ()):
        tell_once(f"note: {flag} {path}: a new score head is started; {others[0]}{_and_others(others)} is left out")
        return
    raise UserError(
        f"{flag} {path}: holds {others[0]}{_and_others(others)}, where a score model has score.weight; stage 2 would"
        " start a new head"
    )


def check_model(auto_class: Any, config: Any, path: str, flag: str, new: tuple[str, ...] = ()) -> PreTrainedModel:
    """The model without memory for its parameters; the weights fit it, but for `new` ones, which they need not have.

    Raises:
        UserError: they do not, or the configuration describes no such model; names `flag`.
    """
    model = skeleton(auto_class, config, path, flag)
    _check_weights(model, path, flag, new)
    return model


def is_score_model(config: Any) -> bool:
    """Whether the configuration is that of a classifier, or of a score model of Safe RLHF."""
    return any("ForSequenceClassification" in n or n.endswith("ForScore") for n in config.architectures or ())


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
            return auto_class.from_config(
                config, trust_remote_code=_permissions.trust_remote_code, **_attention_option()
            )
    except Exception as error:  # the sizes of a configuration may contradict each other in many ways
        kind = "sequence classifier" if auto_class is AutoModelForSequenceClassification else "language model"
        if _permissions.attention is not None and "attention" in str(error).lower().replace("attn", "attention"):
            raise UserError(
                f"--attn_implementation {_permissions.attention}: none that {flag} {path} has ({first_line(error)})"
            ) from None
        if "Unrecognized configuration class" in str(error):
            raise UserError(f"{flag} {path}: transformers has no {kind} for {config.model_type}") from None
        raise UserError(
            f"{flag} {path}: config.json ({config.model_type}) makes no {kind} ({first_line(error)})"
        ) from None


def _attention_option() -> dict[str, str]:
    """`--attn_implementation`, as transformers takes it."""
    return {} if _permissions.attention is None else {"attn_implementation": _permissions.attention}


def _check_weights(model: PreTrainedModel, path: str, flag: str, new: tuple[str, ...] = ()) -> StoredWeights | None:
    """Compare the headers of the weights in a folder with the model that `config.json` describes.

    Hub names are checked when they are loaded.

    Returns:
        What was compared; None where it could not be.

    Raises:
        UserError: weights that are missing (but in a dry run), pickled, truncated, damaged or of another shape; names
            `flag`.
    """
    folder = Path(path)
    if _permissions.missing_weights and lacks_weights(path):
        return None
    if not folder.is_dir() or (_permissions.allow_pickle and not any(folder.glob("*.safetensors"))):
        return None
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise UserError(f"{flag} {path}: pickled weights can run code; they are read with --allow_pickle alone")
    stored = stored_weights(model, path, flag)
    for name, shape, expected in stored.misshapen:
        raise UserError(f"{flag} {path}: {name} has shape {shape}, config.json describes {expected}")
    if beyond := layers_beyond(model, stored.unused):
        layers = model.config.get_text_config().num_hidden_layers
        raise UserError(f"{flag} {path}: the weights hold {beyond[0]}, config.json describes {layers} layers")
    if missing := [name for name in stored.missing if name not in new]:
        held = f" (they hold {stored.unused[0]}{_and_others(stored.unused)})" if stored.unused else ""
        raise UserError(f"{flag} {path}: the weights lack {missing[0]}{_and_others(missing)}{held}")
    return stored


def lacks_weights(path: str) -> bool:
    """Whether a model folder holds no weights, in any form: configuration and tokenizer alone."""
    weights = (file for pattern in ("*.safetensors*", "*.bin*") for file in Path(path).glob(pattern))
    return Path(path).is_dir() and not any(weights)


def _and_others(names: list[str]) -> str:
    return f" and {len(names) - 1} other{'s' * (len(names) > 2)}" if len(names) > 1 else ""


def check_dialogues(tokenizer: PreTrainedTokenizerBase, flag: str) -> list[int]:
    """Ids of a dialogue; raises UserError, which names `flag`, if the tokenizer cannot write one."""
    try:
        return encode_dialogue(tokenizer, [{"role": "user", "content": "?"}], "!")
    except UserError as error:
        raise UserError(f"{flag} {error}") from None


def check_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dialogue: list[int], path: str, flag: str
) -> None:
    """Make sure that a model has embeddings for what every `dialogue` holds; others that are missing are told.

    Raises:
        UserError: it has not; names `flag`.
    """
    rows = embedding_rows(model)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest < rows:
        return
    if max(dialogue) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(dialogue))
        raise UserError(f"{flag} {path}: dialogues hold {token!r} (id {max(dialogue)}), the model has only {rows} rows")
    tell_once(
        f"note: {flag} {path}: the tokenizer has ids up to {largest} ({token!r}), the model only {rows} rows;"
        " texts with such ids are refused"
    )


@functools.cache
def tell_once(line: str) -> None:
    """Print a line on the main rank, the first time only: models are checked wherever they are named."""
    print_main(line)


def check_positions(path: str, flag: str, length: int, lengths_flag: str) -> None:
    """Raise UserError if a model has fewer positions than `length` tokens, as `lengths_flag` allows them."""
    positions = positions_of(load_config(path, flag))
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
        eos_token_id=end_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def load_model(
    auto_class: Any, path: str, flag: str, dtype: torch.dtype, new: tuple[str, ...] = (), num_labels: int | None = None
) -> PreTrainedModel:
    """Load all parameters but the `new` ones, without dropout. transformers fills in missing ones at random."""
    config = load_config(path, flag)
    switch_off_dropout(config)
    if num_labels is not None:
        config.num_labels = num_labels
    options = {"config": config, "dtype": dtype, "output_loading_info": True, **_attention_option()}
    options["trust_remote_code"] = _permissions.trust_remote_code
    try:
        folder = None if _has_its_own_way(config) else agreed(weights_folder(path), f"{flag} {path}")
        if folder is None:  # transformers knows further formats, and may find what is there under other names
            options["use_safetensors"] = None if _permissions.allow_pickle else True
            with arriving(None):
                model, info = auto_class.from_pretrained(**source_of(path), **options)
        else:
            model, info = _load_stored(auto_class, path, flag, folder, options)
    except UserError:
        raise
    except Exception as error:  # as in `load_config`
        raise _unreadable(path, flag, "the weights", error) from None
    if missing := sorted(set(info["missing_keys"]) - set(new)):
        raise UserError(f"{flag} {path}: the weights lack {missing[0]}" + _and_others(missing))
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # its row would get no gradient, though it may be that of EOS
    model.config.use_cache = False  # generation asks for the cache itself
    return model


def _has_its_own_way(config: Any) -> bool:
    """Whether a model brings program code, which is loaded with it, or its weights have another name."""
    brings_code = _permissions.trust_remote_code and getattr(config, "auto_map", None)
    return bool(brings_code or getattr(config, "transformers_weights", None))


def _load_stored(
    auto_class: Any, path: str, flag: str, folder: Path, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """What `from_pretrained` makes of a folder or hub name, from tensors that are read when their turn has come."""
    bones = skeleton(auto_class, options["config"], path, flag)
    named, tied = dict(bones.named_parameters(remove_duplicate=False)), getattr(bones, "all_tied_weights_keys", {})
    arrival().compared = {named[name].shape for name in (*tied.keys(), *tied.values()) if name in named}
    with one_by_one():
        tensors = stored_tensors(find_tensors(folder, flag), arrival().reads, path)
        # Of a configuration made of several, a language model takes its own.
        model, info = type(bones).from_pretrained(None, state_dict=tensors, **options | {"config": bones.config})
    share_buffers(model)
    source = {"revision": None} | source_of(path)
    model.name_or_path = model.config.name_or_path = source["pretrained_model_name_or_path"]
    if model.can_generate():
        nothing = dict.fromkeys(
            ("generation_config", "from_auto_class", "from_pipeline", "cache_dir", "proxies", "token")
        )
        model.adjust_generation_fn(
            **source,
            **nothing,
            force_download=False,
            local_files_only=False,
            subfolder="",
            trust_remote_code=options["trust_remote_code"],
        )
    return model, info


def switch_off_dropout(config: Any) -> None:
    """Set every dropout of a configuration, and of those it is made of, to 0."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for name, value in part.to_dict().items() if part is not None else ():
            if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
                setattr(part, name, 0.0)


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
    hidden = trunk_of(model)(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state  # [batch, time, hidden]
    return model.score(hidden).squeeze(-1).float()
