"""Loading policies, reward and cost models and tokenizers; the score head on every token; exporting.

A model folder is foreign until the command line says otherwise: program code in it is not run, and pickled weights,
which can hold code, are not read (`allow`). The `check_` functions tell what is wrong with a folder from its
configuration, its tokenizer and the headers of its weights, so that a mistake in the last of seven models is known
before the first one is loaded.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from utils.cli.hub import source_of
from utils.engines.arrival import agreed, arrival, arriving, share_buffers, whole
from utils.models.adapter_folder import (
    base_of,
    is_adapter_folder,
    merge_adapters,
    needs_whole_base,
)
from utils.models.checking import check_no_score_model
from utils.models.configs import (
    NEW_HEAD,
    and_others,
    attention_option,
    is_score_model,
    language_model_class,
    load_config,
    permissions,
    skeleton,
    unreadable,
)
from utils.models.fingerprint import find_tensors
from utils.models.stored_tensors import one_by_one, stored_tensors, weights_folder
from utils.process.errors import UserError

disable_progress_bar()  # loading bars of seven models drown everything else
set_verbosity_error()  # what its warnings are about ends in an error here, or is no news (the head that stage 2 adds)


def load_causal_lm(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Language model with its head, dropout switched off; a folder of adapters is merged into its base.

    Raises:
        UserError: no language model there; names `flag`.
    """
    check_no_score_model(load_config(path, flag), path, flag)
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


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """A model without its head; a few classes (Llama 4) do not have it under the name that they say."""
    return model.base_model if model.base_model is not model else model.model


def new_score_model(
    path: str, flag: str, dtype: torch.dtype = torch.float32, labels: Sequence[str] = ()
) -> PreTrainedModel:
    """Score model, the start of stage 2: with a new head on the trunk of any decoder, or, of one label, as it is.

    Args:
        labels: names of its outputs; without them there is one, which has none.

    Raises:
        UserError: the folder holds no such decoder; names `flag`.
    """
    new = () if is_score_model(load_config(path, flag)) else NEW_HEAD
    model = load_model(AutoModelForSequenceClassification, path, flag, dtype, new=new, num_labels=len(labels) or 1)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
        model.config.problem_type = "regression"
    return model


def load_for_its_trunk(path: str, flag: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A decoder as a classifier, whose head counts for nothing: new, or of a score model with any number of labels.

    Raises:
        UserError: the folder holds no such decoder; names `flag`.
    """
    config = load_config(path, flag)
    if is_score_model(config):
        return load_model(AutoModelForSequenceClassification, path, flag, dtype)
    return new_score_model(path, flag, dtype)


def load_model(
    auto_class: Any, path: str, flag: str, dtype: torch.dtype, new: tuple[str, ...] = (), num_labels: int | None = None
) -> PreTrainedModel:
    """Load all parameters but the `new` ones, without dropout. transformers fills in missing ones at random."""
    config = load_config(path, flag)
    switch_off_dropout(config)
    if num_labels is not None:
        config.num_labels = num_labels
    options = {"config": config, "dtype": dtype, "output_loading_info": True, **attention_option()}
    options["trust_remote_code"] = permissions.trust_remote_code
    try:
        folder = None if _has_its_own_way(config) else agreed(weights_folder(path), f"{flag} {path}")
        if folder is None:  # transformers knows further formats, and may find what is there under other names
            options["use_safetensors"] = None if permissions.allow_pickle else True
            with arriving(None):
                model, info = auto_class.from_pretrained(**source_of(path), **options)
        else:
            model, info = _load_stored(auto_class, path, flag, folder, options)
    except UserError:
        raise
    except Exception as error:  # as in `load_config`
        raise unreadable(path, flag, "the weights", error) from None
    if missing := sorted(set(info["missing_keys"]) - set(new)):
        raise UserError(f"{flag} {path}: the weights lack {missing[0]}" + and_others(missing))
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # its row would get no gradient, though it may be that of EOS
    model.config.use_cache = False  # generation asks for the cache itself
    return model


def _has_its_own_way(config: Any) -> bool:
    """Whether a model brings program code, which is loaded with it, or its weights have another name."""
    brings_code = permissions.trust_remote_code and getattr(config, "auto_map", None)
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


def position_ids_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions counted from the first real token of each row: [batch, time] mask -> [batch, time] int64."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def score_tokens(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """The score head on every token: [batch, time] ids -> [batch, time, labels] float32.

    transformers' own forward pools at the last token that is not the pad token, which goes wrong as soon as a
    sampled response contains that token; here the caller picks the position.
    """
    hidden = trunk_of(model)(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    ).last_hidden_state  # [batch, time, hidden]
    return model.score(hidden).float()
