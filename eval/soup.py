"""Rewarded Soups: the policy whose weights are a convex combination of those of experts, one expert an objective.

    python eval/soup.py --expert helpfulness=output/tiny/policies/ppo_helpfulness \
        harmlessness=output/tiny/policies/ppo_harmlessness \
        --weight helpfulness=0.4 harmlessness=0.6 --output_dir output/tiny/policies/rewarded_soup_0.4

θ = Σ λ_i θ_i (Rame et al., 2023), summed in float64 one tensor at a time and stored in the experts' type. Experts must
be fine-tunings of one base: only then do their weights lie in one basin, and their average makes sense. A weight of
1 gives that expert bit for bit.
"""

import argparse
import gc
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eval.results.runs import SETTINGS, read_json_object
from eval.results.shapes import OBJECT, Shape
from utils.cli.arguments import Parser
from utils.cli.types import named_number, named_value
from utils.models.card import write_card
from utils.models.fingerprint import INDEX, find_tensors, load_tensor, weights_fingerprint
from utils.output.files import check_writable, finished_directory, write_json
from utils.process.errors import UserError, run_main

# What a model folder holds beside its weights, as patterns; logs and settings of the training stay behind.
COMPANIONS = ("*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "added_tokens.json",
              "special_tokens_map.json", "chat_template*")  # fmt: skip
VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
ALGORITHM = "rewarded_soup"  # in args.json
FACTS = ("algorithm", "actor_model", "actor_model_sha256", "seed")  # there beside the flags
FLOATS = ("F", "BF")  # how the types of safetensors begin: F64, F32, BF16, ...
# Of a configuration: what does not change the function that the weights define.
INCIDENTAL = {"transformers_version", "_name_or_path", "use_cache", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class Expert:
    """A model folder.

    Attributes:
        flag: the words of the command line that name it, for errors.
        tensors: {name: file}, sorted by name.
        settings: args.json of its training; {} where there is none.
    """

    folder: Path
    flag: str
    tensors: dict[str, Path]
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.flag} {self.folder}"

    def read(self, name: str) -> torch.Tensor:
        return load_tensor(self.tensors[name], name)

    def describe(self, name: str) -> tuple[list[int], str]:
        """Shape and type of a tensor, which is not read."""
        with safe_open(self.tensors[name], framework="pt") as file:
            stored = file.get_slice(name)
            return stored.get_shape(), stored.get_dtype()


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Average the weights of experts into one policy", facts=FACTS)
    several = {"nargs": "+", "action": "extend", "required": True}
    parser.add_argument(
        "--expert", type=named_value, metavar="NAME=PATH", help="name and model folder of an expert", **several
    )
    parser.add_argument(
        "--weight", type=named_number, metavar="NAME=W", help="an expert's share; all shares sum to 1", **several
    )
    parser.add_argument("--base", metavar="PATH", help="model folder that every expert must be a fine-tuning of")
    parser.add_argument("--output_dir", required=True, help="folder of the averaged policy, replaced as a whole")
    return parser.parse_args()


def check_weights(experts: list[tuple[str, str]], weights: list[tuple[str, float]]) -> dict[str, float]:
    """{expert: weight} in the order of the experts.

    Raises:
        UserError: names that are given twice or do not match, a negative weight, a sum other than 1.
    """
    for flag, pairs in (("--expert", experts), ("--weight", weights)):
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{flag} {twice[0]}: given twice")
    by_name, known = dict(weights), dict(experts)
    if missing := [name for name in known if name not in by_name]:
        raise UserError(f"--weight: {missing[0]} has none")
    for name, weight in weights:
        if name not in known:
            raise UserError(f"--weight {name}={weight:g}: no expert has this name")
        if not 0 <= weight <= 1:
            raise UserError(f"--weight {name}={weight:g}: not between 0 and 1")
    if not math.isclose(total := sum(by_name.values()), 1, abs_tol=1e-6):
        raise UserError(f"--weight: the weights sum to {total:g}, not to 1")
    return {name: by_name[name] for name in known}


def read_settings(path: Path, shape: Shape = OBJECT) -> dict[str, Any]:
    """A JSON object; {} if there is no such file. Raises: UserError: it holds something else."""
    return read_json_object(path, shape) if path.is_file() else {}


def open_expert(path: str, flag: str) -> Expert:
    """Raises: UserError: no full-weight model folder there; names `flag`."""
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{flag} {path}: a LoRA adapter; merge it into its base first")
    if not (folder / "config.json").is_file():
        raise UserError(f"{flag} {path}: no such model (a folder with a config.json)")
    return Expert(folder, flag, find_tensors(folder, flag), read_settings(folder / "args.json", SETTINGS))


def describe_architecture(expert: Expert) -> dict[str, Any]:
    config = read_settings(expert.folder / "config.json")
    return {key: value for key, value in config.items() if key not in INCIDENTAL}


def describe_tokenizer(expert: Expert) -> dict[str, Any]:
    """What decides the ids of a dialogue, comparable; padding and truncation are set by whoever tokenizes."""
    folder = expert.folder
    fast = read_settings(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    description = {f"tokenizer.json {key}": fast[key] for key in fast if key not in ("padding", "truncation")}
    if not fast:
        description = {name: (folder / name).read_bytes() for name in VOCABULARIES if (folder / name).is_file()}
    stored = read_settings(folder / "tokenizer_config.json").get("chat_template")
    description["chat template"] = (
        template.read_text(encoding="utf-8", errors="replace") if template.is_file() else stored
    )
    return description


def check_alike(expert: Expert, other: Expert) -> None:
    """Make sure that two models have one architecture, tokenizer, set of tensors, and their shapes and types.

    Raises:
        UserError: they have not; the line names `expert`, and what differs first.
    """
    for what, describe in (("configuration", describe_architecture), ("tokenizer", describe_tokenizer)):
        ours, theirs = describe(expert), describe(other)
        if differing := [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]:
            raise UserError(f"{expert.title}: another {what} than {other.title} ({differing[0]} differs)")
    if unshared := sorted(expert.tensors.keys() ^ other.tensors.keys()):
        raise UserError(f"{expert.title}: other tensors than {other.title} (only one has {unshared[0]})")
    for name in expert.tensors:
        (shape, dtype), (other_shape, other_dtype) = expert.describe(name), other.describe(name)
        if (shape, dtype) != (other_shape, other_dtype):
            raise UserError(
                f"{expert.title}: {name} is {dtype} {shape}, in {other.title} it is {other_dtype} {other_shape}"
            )
        if not dtype.startswith(FLOATS) and not expert.read(name).equal(other.read(name)):
            raise UserError(f"{expert.title}: {name} cannot be averaged and is not that of {other.title}")


def base_of(expert: Expert) -> tuple[str | None, str | None]:
    """(path, fingerprint) of the policy that an expert started from, as far as its training recorded them."""
    return expert.settings.get("actor_model"), expert.settings.get("actor_model_sha256")


def fingerprint_of(path: str | None, recorded: str | None, expert: Expert) -> str | None:
    """Fingerprint of a base: the recorded one, else that of the folder if it is still there."""
    if recorded or path is None or not (Path(path) / "config.json").is_file():
        return recorded
    return weights_fingerprint(path, f"{expert.flag}: its base")


def check_same_base(expert: Expert, other: Expert, on_trust: bool) -> None:
    """Make sure that two experts started from the same weights. Where no record tells, say so and go on.

    Raises:
        UserError: the records name different bases; or there is none, and it is not to be taken `on_trust`.
    """
    (ours, our_mark), (theirs, their_mark) = base_of(expert), base_of(other)
    if our_mark and their_mark:
        same = our_mark == their_mark
    elif ours is None or theirs is None:
        unknown = f"{(expert if ours is None else other).title}: no args.json says what it was fine-tuned from"
        if not on_trust:
            raise UserError(f"{unknown}, which --base asks for")
        print(f"{unknown}, taken on trust", flush=True)
        return
    elif Path(ours).resolve() == Path(theirs).resolve():
        same = True
    else:
        marks = fingerprint_of(ours, our_mark, expert), fingerprint_of(theirs, their_mark, other)
        same = None not in marks and marks[0] == marks[1]
    if not same:
        found, expected = name_base(expert), name_base(other)
        raise UserError(f"{expert.title}: not fine-tuned from the base of {other.title} ({found}; {expected})")


def name_base(expert: Expert) -> str:
    """Path and beginning of the fingerprint, for errors."""
    path, mark = base_of(expert)
    return f"{path}, sha256 {mark[:8]}" if mark else str(path)


def check_experts(experts: list[Expert], base: Expert | None) -> None:
    """All checks that take more than one model folder.

    Raises:
        UserError: experts that cannot be averaged.
    """
    first = experts[0] if base is None else base
    for expert in experts:
        if expert is not first:
            check_alike(expert, first)
            check_same_base(expert, first, on_trust=base is None)


def check_output(output_dir: str, experts: list[Expert]) -> Path:
    """The folder to write, which replaces an older soup and nothing else.

    Raises:
        UserError: it holds an expert or something that is no soup, or cannot be written.
    """
    folder = Path(output_dir)
    for expert in experts:
        if expert.folder.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--output_dir {folder}: writing there would delete {expert.title}")
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and read_settings(folder / "args.json").get("algorithm") != ALGORITHM:
        raise UserError(f"--output_dir {folder}: holds something other than an older soup, which would be deleted")
    check_writable(folder.resolve().parent)
    return folder


def average_tensor(name: str, shares: list[tuple[float, Expert]]) -> torch.Tensor:
    """Σ λ_i θ_i of one tensor in its own type. `shares` are positive: 0 times an infinite weight is not 0."""
    _, first = shares[0]
    tensor = first.read(name)
    if len(shares) == 1 or not tensor.is_floating_point():
        return tensor
    total = sum(weight * expert.read(name).double() for weight, expert in shares)
    return total.to(tensor.dtype)


def write_soup(folder: Path, experts: list[Expert], weights: list[float]) -> None:
    """Fill `folder` with the average, laid out in files like the expert with the largest weight."""
    shares = [(weight, expert) for weight, expert in zip(weights, experts, strict=True) if weight > 0]
    _, model = max(shares, key=lambda share: share[0])
    for source in sorted({file for pattern in (*COMPANIONS, INDEX) for file in model.folder.glob(pattern)}):
        if source.is_file():
            shutil.copy(source, folder)
    for path in dict.fromkeys(model.tensors.values()):
        if len(shares) == 1:
            shutil.copy(path, folder)
            continue
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        names = [name for name, place in model.tensors.items() if place == path]
        save_file({name: average_tensor(name, shares) for name in names}, folder / path.name, metadata)


def main() -> None:
    args = parse_args()
    weights = check_weights(args.expert, args.weight)
    experts = [open_expert(path, f"--expert {name}") for name, path in args.expert]
    base = None
    if args.base:
        base = open_expert(args.base, "--base")
        base.settings.update(actor_model=args.base, actor_model_sha256=weights_fingerprint(args.base, "--base"))
    check_experts(experts, base)
    output_dir = check_output(args.output_dir, experts if base is None else [*experts, base])
    actor_model, mark = base_of(experts[0] if base is None else base)
    seeds = {expert.settings.get("seed") for expert in experts}
    facts = (ALGORITHM, actor_model, mark, seeds.pop() if len(seeds) == 1 else None)
    settings = vars(args) | dict(zip(FACTS, facts, strict=True))
    with finished_directory(output_dir) as folder:
        write_soup(folder, experts, list(weights.values()))
        write_json(folder / "args.json", settings)
        write_card(folder, output_dir, settings, {})
    recipe = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
    print(f"{output_dir}: {recipe}", flush=True)


if __name__ == "__main__":
    run_main(main)
