"""A model card: what a folder of a trained model says of itself, README.md with Hugging Face's front matter.

It is made from a run's settings, as args.json has them, and figures; the license is left to who publishes the model.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from utils.cli.hub import is_local
from utils.data.sources import is_hub_data
from utils.output.files import write_text
from utils.output.metrics import METRICS

CARD = "README.md"
MARK = "<!-- A card without this line is taken for yours, and stays as it is. -->"
OBJECTIVES = ("reward_model", "cost_model", "reward_function", "objective", "expert")  # flags whose values are NAME=...
MODELS = ("actor_model", "model_name_or_path")
TOLD = (
    "preference",
    "weight",
    "policy_loss",
    "advantage",
    "rescale_power",
    "gradient_scope",
    "tasks",
    "min_angle",
    "max_angle",
    "message",
    "iterations",
    "samples_per_direction",
    "lora_dim",
    "seed",
)


def write_card(folder: Path, target: str | Path, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
    """Write the card of a run into the folder that its model is exported to.

    Args:
        folder: where it is written; target: where it will be. A card of the user's there stays.
        settings: flags, as in args.json; figures: what is known of the model, by name.
    """
    there = Path(target) / CARD
    if there.is_file() and MARK not in there.read_text(encoding="utf-8", errors="replace"):
        return
    write_text(Path(folder) / CARD, card(Path(target).name, settings, figures, command()))


def figures_of(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation, and the means of those with intervals."""
    found = {name: value.get("mean") if isinstance(value, dict) else value for name, value in evaluation.items()}
    return {name: value for name, value in found.items() if type(value) in (int, float)}


def last_figures(directory: str | Path) -> dict[str, float]:
    """What the last rollout of a run was worth, of its metrics.jsonl, if it has one."""
    path = Path(directory) / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    kept = {tag: value for tag, value in last.items() if tag.startswith(("reward/", "judge/all")) or tag == "kl"}
    return {f"{tag} (last rollout)": value for tag, value in kept.items()}


def card(name: str, settings: Mapping[str, Any], figures: Mapping[str, float], made_by: str) -> str:
    """The text of a card."""
    rows = [("base model", base_of(settings)), *objectives_of(settings)]
    rows += [(flag, shown(settings[flag])) for flag in TOLD if settings.get(flag)]
    parts = [f"---\n{front_matter(settings)}\n---", f"# {name}", MARK, f"{kind_of(settings)}.", table(rows)]
    if figures:
        parts += ["## Figures", table([(each, f"{value:.4g}") for each, value in figures.items()])]
    parts += ["## Made by", f"```bash\n{made_by}\n```"]
    return "\n\n".join(parts) + "\n"


def front_matter(settings: Mapping[str, Any]) -> str:
    """YAML; of base model and data what is on the hub. Without a license: that is for whoever publishes the model."""
    base = base_of(settings)
    sources = [each.partition(":")[0] for each in str(settings.get("data") or "").split(",")]
    scores = "kind" in settings and "algorithm" not in settings
    adapters = settings.get("lora_dim") and settings.get("lora_export") == "adapter"
    tags = ["alignment" if is_aligned(settings) else "reward-model" if scores else "sft"]
    tags += [settings["algorithm"]] if str(settings.get("algorithm", ":")).isidentifier() else []
    data = ModelCardData(
        base_model=base.partition("@")[0] if base and not is_local(base) else None,
        datasets=[each.partition("@")[0] for each in sources if each and is_hub_data(each)] or None,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        tags=tags,
    )
    return data.to_yaml()


def base_of(settings: Mapping[str, Any]) -> str:
    """Folder or hub name of what training started from; nothing where the settings do not say."""
    return next((settings[flag] for flag in MODELS if settings.get(flag)), "")


def is_aligned(settings: Mapping[str, Any]) -> bool:
    """Whether the settings are those of a stage 3, or of a soup."""
    return "algorithm" in settings or "samples_per_direction" in settings


def kind_of(settings: Mapping[str, Any]) -> str:
    """What the model is, in a few words."""
    if "algorithm" in settings:
        return f"A language model that is aligned to several objectives by {settings['algorithm']}"
    if "samples_per_direction" in settings:
        return "A language model that is steered by directions over several attributes, written into its system turn"
    if "kind" in settings:
        return f"A {settings['kind']} model" + (f" of {settings['objective']}" if settings.get("objective") else "")
    return "A language model after supervised fine-tuning"


def objectives_of(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for every objective, and where its values come from."""
    monitored = settings.get("monitor") or []
    found = []
    for flag in OBJECTIVES:
        values = settings.get(flag) if is_aligned(settings) else None
        for name, place in values or []:
            found.append((f"objective {name}" + " (only scored)" * (name in monitored), f"{flag}: {place}"))
    return found


def shown(value: Any) -> str:
    """A flag's value as on the command line."""
    if isinstance(value, list):
        return " ".join("=".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value)
    return str(value)


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns of markdown."""
    cells = [(name, text.replace("|", "\\|").replace("\n", " ")) for name, text in rows if text]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | `{text}` |" for name, text in cells)])


def command() -> str:
    """The command of this process."""
    return shlex.join(["python", *sys.argv])
