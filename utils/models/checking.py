"""Whether a model will do, before its weights are read."""

import functools
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.data.encoding import encode_dialogue
from utils.models.adapter_folder import (
    base_of,
    check_adapters,
    is_adapter_folder,
)
from utils.models.configs import (
    LANGUAGE_MODELS,
    NEW_HEAD,
    and_others,
    embedding_rows,
    is_score_model,
    language_model_class,
    load_config,
    load_generation_config,
    load_tokenizer,
    permissions,
    positions_of,
    skeleton,
)
from utils.models.stored_weights import StoredWeights, layers_beyond, stored_weights
from utils.process.distributed import print_main
from utils.process.errors import UserError


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
    check_no_score_model(config, path, flag)
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


def check_no_score_model(config: Any, path: str, flag: str) -> None:
    if is_score_model(config):
        raise UserError(f"{flag} {path}: this is {config.architectures[0]}, not a language model")


def check_decoder(path: str, flag: str, from_scores: bool = True, of_any_labels: bool = False) -> PreTrainedModel:
    """Make sure, before any weight is read, that a model can start stage 2, and has its tokenizer and weights.

    Args:
        from_scores: whether a score model with one label will do.
        of_any_labels: whether one with several will, too: its trunk alone is wanted.

    Raises:
        UserError: no decoder with a classifier that has a `score` head; a score model with several labels or under
            another name than `score`; or something is missing, damaged or does not fit.
    """
    config = load_config(path, flag)
    classifies = is_score_model(config)
    if classifies and not from_scores:
        raise UserError(f"{flag} {path}: this is {config.architectures[0]}; a head of its own needs a language model")
    if classifies and config.num_labels != 1 and not of_any_labels:
        raise UserError(f"{flag} {path}: the score model has {config.num_labels} labels, stage 2 trains one")
    config.num_labels = config.num_labels if classifies else 1
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
        tell_once(f"note: {flag} {path}: a new score head is started; {others[0]}{and_others(others)} is left out")
        return
    raise UserError(
        f"{flag} {path}: holds {others[0]}{and_others(others)}, where a score model has score.weight; stage 2 would"
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
    if permissions.missing_weights and lacks_weights(path):
        return None
    if not folder.is_dir() or (permissions.allow_pickle and not any(folder.glob("*.safetensors"))):
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
        held = f" (they hold {stored.unused[0]}{and_others(stored.unused)})" if stored.unused else ""
        raise UserError(f"{flag} {path}: the weights lack {missing[0]}{and_others(missing)}{held}")
    return stored


def lacks_weights(path: str) -> bool:
    """Whether a model folder holds no weights, in any form: configuration and tokenizer alone."""
    weights = (file for pattern in ("*.safetensors*", "*.bin*") for file in Path(path).glob(pattern))
    return Path(path).is_dir() and not any(weights)


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
