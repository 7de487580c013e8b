"""Upload the model in a folder to the Hugging Face hub, with its card, and without what a run leaves beside it.

    python -m utils.push_to_hub output/tiny/policies/gapo_p1 my-name/gapo-p1 --license apache-2.0 \\
        --evaluation output/tiny/eval/gapo_p1.json

The hub's own login counts (`hf auth login`, or HF_TOKEN). What is uploaded is listed first; --dry_run ends there.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from utils.cli.arguments import Parser
from utils.models.card import CARD, table
from utils.models.configs import first_line
from utils.output.files import UNFINISHED
from utils.process.errors import Failure, UserError, run_main

# Of a run's folder what makes the model; peft's files where it is adapters.
FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", CARD,
)  # fmt: skip
NAME = re.compile(r"[\w.-]+/[\w.-]+")


def main() -> None:
    args = parse_args()
    folder = Path(args.folder)
    files = files_of(folder)
    evaluation = read_evaluation(args.evaluation) if args.evaluation else {}
    with tempfile.TemporaryDirectory() as temporary:
        for file in files:
            if file.name != CARD:
                (Path(temporary) / file.name).symlink_to(file.resolve())
        text = card_to_publish(folder / CARD, args.license, evaluation)
        (Path(temporary) / CARD).write_text(text, encoding="utf-8")
        size = sum(file.stat().st_size for file in files)
        print(
            f"{args.name}: {len(files)} files, {size / 2**20:.1f} MiB: {', '.join(file.name for file in files)}",
            flush=True,
        )
        if not args.dry_run:
            print(f"uploaded: {upload(Path(temporary), args)}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="an exported model with its card")
    parser.add_argument("name", metavar="NAME", help="OWNER/NAME on the hub; made if it is not there")
    parser.add_argument("--license", help="for the card, such as apache-2.0; it says none unless given")
    parser.add_argument("--evaluation", metavar="FILE", help="eval/<run>.json, whose scores the card then has")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument("--message", default="Upload model", help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="say what would be uploaded, and end")
    args = parser.parse_args()
    if not NAME.fullmatch(args.name):
        raise UserError(f"NAME {args.name}: is not OWNER/NAME")
    return args


def files_of(folder: Path) -> list[Path]:
    """What is uploaded.

    Raises:
        UserError: no finished model with a card.
    """
    if not folder.is_dir():
        raise UserError(f"FOLDER {folder}: no such folder")
    if (folder / UNFINISHED).exists():
        raise UserError(f"FOLDER {folder}: the run in it is not finished")
    for needed in ("config.json", CARD):
        if not (folder / needed).is_file():
            raise UserError(f"FOLDER {folder}: no {needed} there")
    files = sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()})
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"FOLDER {folder}: no weights (*.safetensors) there")
    return files


def read_evaluation(path: str) -> dict[str, tuple[float, float]]:
    """{score: mean and half of its interval} of a file of eval/score.py. Raises: UserError: it is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {"model score": found["objectives"], "gold score": found.get("gold", {}).get("objectives", {})}
        scores = [(f"{name} ({kind})", entry) for kind, part in parts.items() for name, entry in part.items()]
        return {name: (float(entry["mean"]), float(entry["ci95"])) for name, entry in scores}
    except OSError as error:
        raise UserError(f"--evaluation {path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--evaluation {path}: is no file of eval/score.py") from None


def card_to_publish(path: Path, license: str | None, evaluation: dict[str, tuple[float, float]]) -> str:
    """The folder's card with license and scores.

    Raises:
        UserError: its front matter is none.
    """
    try:
        card = ModelCard.load(path, ignore_metadata_errors=False)
    except ValueError as error:
        raise UserError(f"{path}: {first_line(error)}") from None
    if license:
        card.data.license = license
    if evaluation:
        rows = [(name, f"{mean:.4g} ± {half:.2g}") for name, (mean, half) in evaluation.items()]
        note = "Means over test prompts, with half of the 95% interval."
        card.text = f"{card.text.rstrip()}\n\n## Evaluation\n\n{note}\n\n{table(rows)}\n"
    return str(card)


def upload(folder: Path, args: argparse.Namespace) -> str:
    """The address of the commit.

    Raises:
        Failure: the hub does not answer, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(args.name, private=args.private or None, exist_ok=True)
        return api.upload_folder(repo_id=args.name, folder_path=folder, commit_message=args.message).commit_url
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Failure(f"NAME {args.name}: not uploaded ({first_line(error)})") from None


if __name__ == "__main__":
    run_main(main)
