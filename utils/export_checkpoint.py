"""Turn a checkpoint of a run, finished or not, into a Hugging Face folder.

    python utils/export_checkpoint.py output/tiny/policies/gapo_p1 --output_dir gapo_p1_now

One plain process is enough, whatever number of ranks and ZeRO stage the checkpoint was made with: no launcher, no GPU,
one model in memory. The weights are those that the run would export at that step, bit for bit: of stages 1 and 2 with
`--export best`, those of the best epoch so far; with LoRA in the form of `--lora_export`. A checkpoint of adapters does
not hold their base, which then must still be there.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel

from utils.checkpoints.manifest import BEST, ENGINES, read_manifest, step_folders, verify
from utils.checkpoints.reshape import read_saved, whole_shapes
from utils.cli.arguments import Parser, add_loading_arguments
from utils.engines.arrival import persistent_buffers
from utils.models.card import write_card
from utils.models.checking import check_causal_lm
from utils.models.configs import (
    DTYPES,
    allow,
    first_line,
    is_score_model,
    language_model_class,
    load_config,
    load_tokenizer,
)
from utils.models.export import export_model
from utils.models.fingerprint import model_fingerprint
from utils.models.loading import load_causal_lm
from utils.models.lora import export_adapted_model, with_adapters
from utils.output.files import check_writable, finished_directory
from utils.process.errors import Failure, UserError, run_main

TRAINED = {"sft": "model", "reward": "model", "gapo": "actor", "dpo": "model"}  # by stage: the engine to export
OF_THE_BEST = "these are the weights of the best epoch so far, not those of the last step"
PREFIX = {"reward": "model."}  # by stage: what holds the exported model in its engine (step2_reward's LastTokenScore)


def main() -> None:
    args = parse_args()
    allow(args)
    folder = find_checkpoint(Path(args.checkpoint))
    manifest = read_manifest(folder)
    engine = chosen_engine(folder, manifest["stage"], args.engine)
    output = empty_directory(args.output_dir)
    adapted = bool(manifest["flags"].get("lora_dim"))
    base = args.actor_model or manifest["flags"].get("actor_model")
    if adapted:
        model, weights = read_adapted_policy(folder, manifest, engine, base)
    else:
        model, weights = read_model(folder, manifest, engine, args.trust_remote_code)
    tokenizer = load_tokenizer(str(folder / "model"), "CHECKPOINT")
    try:
        with finished_directory(output) as temporary:
            if adapted:
                export_adapted_model(model, tokenizer, temporary, weights, manifest["flags"]["lora_export"], base)
            else:
                export_model(model, tokenizer, temporary, weights)
            write_card(temporary, output, manifest["flags"], {"step": manifest["step"]})
    except (OSError, SafetensorError) as error:
        raise Failure(
            f"--output_dir {output}: cannot be written ({first_line(error)}); nothing is left there"
        ) from None
    print(f"{engine} of step {manifest['step']} saved in {output}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Turn a checkpoint of step 1, 2 or 3 into a Hugging Face folder, in one process and without a GPU.",
        epilog="A checkpoint's files are read without running code from them. Loading one to go on training runs what"
        " DeepSpeed pickled into it: go on only from checkpoints of your own.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder step_<number>, or a run (its output folder), whose newest whole checkpoint is taken",
    )
    parser.add_argument("--output_dir", required=True, help="the new folder; appears whole or not at all")
    parser.add_argument(
        "--engine", help="which engine to export: actor (of step 3) or model (of all others; what there is)"
    )
    parser.add_argument(
        "--actor_model", metavar="PATH", help="the base of LoRA's adapters (default: where it was during the run)"
    )
    add_loading_arguments(parser)
    return parser.parse_args(argv)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that is meant, all its checksums compared; says which one where there was a choice.

    Raises:
        UserError: no checkpoint there, or none that is whole.
    """
    if path.resolve().name.startswith("step_") and path.is_dir():
        if fault := verify(path):
            raise UserError(f"{path}: the checkpoint is damaged ({fault})")
        return path
    folders = step_folders(path / "checkpoints") or step_folders(path)
    if not folders:
        raise UserError(f"{path}: no checkpoint there (a folder step_<number>, or a run with such in its checkpoints/)")
    for folder in reversed(folders):
        fault = verify(folder)
        if not fault:
            print(f"exporting {folder}")
            return folder
        print(f"{folder} is damaged ({fault}); looking for the one before it")
    raise UserError(f"{path}: none of its {len(folders)} checkpoints is whole")


def chosen_engine(folder: Path, stage: str, name: str | None) -> str:
    """Name of the engine to export.

    Raises:
        UserError: there is none of this name, or it is a critic; the checkpoint holds a part of a model.
    """
    names = sorted(path.name for path in (folder / ENGINES).iterdir() if path.is_dir())
    if stage not in TRAINED:
        raise UserError(
            f"{folder}: is of {stage}, whose model is whole when the run is; the same command goes on from it"
        )
    name = name or TRAINED[stage]
    if name not in names:
        raise UserError(f"--engine {name}: no such engine in {folder} (there are {', '.join(names)})")
    if name != TRAINED[stage]:
        raise UserError(f"--engine {name}: a critic, for which transformers has no class; export {TRAINED[stage]}")
    return name


def empty_directory(path: str) -> Path:
    """A place for the export.

    Raises:
        UserError: something is there already, or nothing can be written there.
    """
    directory = Path(path)
    try:
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise UserError(f"--output_dir {path}: exists already")
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}") from None
    check_writable(directory.absolute().parent)
    return directory


def read_model(
    folder: Path, manifest: dict[str, Any], engine: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The model of one engine of a whole checkpoint, on the meta device, and its weights."""
    stage, flags = manifest["stage"], manifest["flags"]
    dtype, prefix = DTYPES[flags["dtype"]], PREFIX.get(stage, "")
    model = skeleton(folder / "model", dtype, trust_remote_code)
    if stage == "reward":
        model.config.objective, model.config.kind = flags["objective"], flags["kind"]
        if flags["kind"] != "ratings":
            print("note: mean and spread of the scores are measured when a run is finished; config.json has none here")
    if (folder / BEST).is_file():
        print(OF_THE_BEST)
        return model, load_file(folder / BEST)
    shapes = {prefix + name: shape for name, shape in whole_shapes(model).items()}
    saved = read_saved(folder / ENGINES / engine, flags["zero_stage"], shapes)
    weights = {name: saved.whole(name).to(dtype) for name in shapes}
    weights |= {prefix + name: saved.common["module"][prefix + name] for name in persistent_buffers(model)}
    return model, {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def read_adapted_policy(
    folder: Path, manifest: dict[str, Any], engine: str, base: str
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A policy with adapters around the weights of `base`, and all its weights.

    Raises:
        UserError: the base is not there, or is another model than then.
    """
    flags, flag = argparse.Namespace(**manifest["flags"]), "--actor_model"
    check_causal_lm(base, flag)
    if model_fingerprint(base, flag) != manifest["facts"][flag]:
        raise UserError(f"{flag} {base}: is another model than the one that the adapters of {folder} belong to")
    dtype = DTYPES[flags.dtype]
    model = with_adapters(load_causal_lm(base, flag, dtype), flags)
    model.generation_config = GenerationConfig.from_pretrained(folder / "model")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()} | persistent_buffers(model)
    if (folder / BEST).is_file():
        print(OF_THE_BEST)
        return model, weights | load_file(folder / BEST)
    shapes = whole_shapes(model)
    saved = read_saved(folder / ENGINES / engine, flags.zero_stage, shapes)
    return model, weights | {name: saved.whole(name).to(dtype) for name in shapes}


def skeleton(description: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model that `utils.models.export.describe_model` described, its parameters on the meta device."""
    config = load_config(str(description), "CHECKPOINT")
    auto_class = AutoModelForSequenceClassification if is_score_model(config) else language_model_class(config)
    with torch.device("meta"):
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(description)
    return model


if __name__ == "__main__":
    run_main(main)
