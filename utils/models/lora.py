"""LoRA through peft: trees of modules around the parameters of one base, each with adapters of its own.

W x + (alpha / dim) B A x (Hu et al. 2021, LoRA): A is random and B zero at the start, only they are trained. The base's
parameters are the very same objects in every tree, so that the policy, its reference and the critics hold one copy.
"""

import argparse
import copy
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from utils.cli.hub import source_of
from utils.models.adapter_folder import ADAPTER_WEIGHTS, is_adapter_folder
from utils.models.checking import tell_once
from utils.models.export import describe_model, export_model
from utils.process.errors import UserError

LIKE_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # what the layers of experts are called
ADAPTER = "default"  # peft's name of the only adapter of a layer


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The text's decoder, of a language model or of one without its head; not a vision tower beside it."""
    return model.get_decoder()


def linear_layers(decoder: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a decoder without its head, by their names there."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def target_names(decoder: PreTrainedModel) -> list[str]:
    """Last parts of the names of a decoder's linear layers, such as q_proj, sorted."""
    return sorted({name.rpartition(".")[2] for name in linear_layers(decoder)})


def check_targets(model: PreTrainedModel, targets: list[str] | None) -> None:
    """Raise UserError unless every one of `--lora_target_modules` names linear layers of the decoder."""
    decoder = decoder_of(model)
    layers = linear_layers(decoder)
    if not layers:
        raise UserError(f"--lora_dim: {type(model).__name__} has no linear layers that could have adapters")
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            there = ", ".join(target_names(decoder))
            raise UserError(f"--lora_target_modules {target}: no linear layer of the decoder (there are {there})")
    if experts := stacked_experts(decoder):
        tell_once(f"note: --lora_dim: the experts get no adapters and stay as they are ({experts[0]} and others)")


def stacked_experts(decoder: nn.Module) -> list[str]:
    """Names of the weights of experts that are no linear layers of their own, but parts of one tensor."""
    layers, named = linear_layers(decoder), (name for name, _ in decoder.named_parameters() if ".experts." in name)
    return [name for name in named if name.rpartition(".")[0] not in layers]


def check_adapter_export(model: PreTrainedModel, targets: list[str] | None) -> None:
    """Raise UserError if peft would read exported adapters of linear layers as those of experts."""
    decoder = decoder_of(model)
    alike = sorted(LIKE_EXPERTS & set(targets or target_names(decoder)))
    if stacked_experts(decoder) and alike:
        raise UserError(
            f"--lora_export adapter: peft takes adapters of {', '.join(alike)} for those of the experts of"
            f" {type(model).__name__}; use --lora_export merged, or --lora_target_modules without them"
        )


def check_lora(model: PreTrainedModel, args: argparse.Namespace) -> None:
    """Raise UserError if `--actor_model`, given without memory for its parameters, has no place for what `--lora_dim`
    and the flags beside it ask for."""
    if not args.lora_dim:
        return
    check_targets(model, args.lora_target_modules)
    if args.lora_export == "adapter" and is_adapter_folder(args.actor_model):
        raise UserError(f"--lora_export adapter: --actor_model {args.actor_model} consists of adapters itself")
    if args.lora_export == "adapter":
        check_adapter_export(model, args.lora_target_modules)


def with_adapters(base: PreTrainedModel, args: argparse.Namespace) -> PreTrainedModel:
    """A tree of modules around the parameters of `base`, frozen, with new adapters, which alone are trained.

    Args:
        base: a language model, or its decoder alone; stays what it is but for being frozen.
        args: `--lora_dim`, `--lora_alpha`, `--lora_target_modules`.
    """
    tree = copy.deepcopy(base.requires_grad_(False), {id(p): p for p in base.parameters()})
    return add_adapters(tree, args.lora_dim, args.lora_alpha, args.lora_target_modules)


def add_adapters(model: PreTrainedModel, dim: int, alpha: float, targets: list[str] | None) -> PreTrainedModel:
    """Give a model adapters of its parameters' type, in place; without `targets` on all linear layers but the head."""
    decoder = decoder_of(model)
    targets, within = targets or target_names(decoder), {id(layer) for layer in linear_layers(decoder).values()}
    named_alike = [
        name
        for name, layer in linear_layers(model).items()
        if id(layer) not in within and any(f".{name}".endswith(f".{target}") for target in targets)
    ]  # in a vision tower
    config = LoraConfig(
        r=dim,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        exclude_modules=named_alike or None,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear_layers(decoder).values()),
        task_type="CAUSAL_LM",
    )
    # Of what it knows for a mixture of transformers, peft takes names of linear layers for experts; not of this.
    holder = nn.Module()
    holder.model = model
    inject_adapter_in_model(config, holder, ADAPTER)
    model.peft_config = {ADAPTER: config}
    return model


def is_adapter(name: str) -> bool:
    """Whether a parameter of a tree `with_adapters` is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def merged_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain model's weights: base + (alpha / dim) B A, computed in float32.

    Args:
        model: with adapters; may be partitioned or on the meta device.
        weights: all of its parameters by name.
    """
    merged = {name.replace(".base_layer.", "."): w for name, w in weights.items() if not is_adapter(name)}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (weights[f"{name}.{part}.{ADAPTER}.weight"].float() for part in ("lora_A", "lora_B"))
            change = layer.scaling[ADAPTER] * (b @ a)
            base = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (base.float() + (change.T if layer.fan_in_fan_out else change)).to(base.dtype)
    return merged


def export_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, torch.Tensor],
    args: argparse.Namespace,
) -> None:
    """Write a Hugging Face directory of what a stage has trained, as its `--lora_dim` and `--lora_export` say, if any.

    Args:
        weights: whole ones by name (`gathered_weights`); for `--lora_export adapter` those that are trained suffice.
    """
    if getattr(args, "lora_dim", 0):
        export_adapted_model(model, tokenizer, directory, weights, args.lora_export, args.actor_model)
    else:
        export_model(model, tokenizer, directory, weights)


def export_adapted_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, torch.Tensor],
    form: str,
    base: str,
) -> None:
    """Write a Hugging Face directory of a model with adapters.

    Args:
        weights: all of its parameters by name; of form "adapter" only the adapters' are read.
        form: "merged": a plain model; "adapter": peft's files, with the base's configuration beside them.
        base: folder or hub name of the base, for peft's configuration.
    """
    if form == "merged":
        export_model(model, tokenizer, directory, merged_weights(model, weights))
        return
    describe_model(model, tokenizer, directory)
    config = copy.copy(model.peft_config[ADAPTER])
    source = source_of(str(Path(base).resolve()) if Path(base).is_dir() else base)
    config.base_model_name_or_path, config.revision = source["pretrained_model_name_or_path"], source.get("revision")
    config.inference_mode, config.target_modules = True, sorted(config.target_modules)
    config.save_pretrained(directory)
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": w for name, w in weights.items() if is_adapter(name)
    }
    save_file(adapters, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
