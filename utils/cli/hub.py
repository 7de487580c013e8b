"""Names on the hub: NAME[@REVISION] for models, a hub that does not answer, and one line on what to do about it.

The libraries below try an unreachable hub again and again, half a minute a file. Here it is asked once: if it does not
answer, the process goes on as with HF_HUB_OFFLINE=1, from the copies in the cache alone.
"""

import functools
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import get_session

HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
OFFLINE_BY_CHOICE = constants.HF_HUB_OFFLINE
SECONDS_TO_ANSWER = 5.0


def is_local(path: str) -> bool:
    """Whether `path` means a folder of this machine; what looks like one does not become a hub name by a typo."""
    folder = Path(path)
    below = folder.parent != Path(".") and folder.parent.is_dir()
    return folder.exists() or path.startswith((".", "/", "~")) or below or not HUB_NAME.fullmatch(path)


def source_of(path: str) -> dict[str, Any]:
    """The arguments by which `from_pretrained` finds a model: a folder, or a hub name at its revision."""
    if is_local(path):
        return {"pretrained_model_name_or_path": path}
    match = HUB_NAME.fullmatch(path)
    reach_hub()
    return {"pretrained_model_name_or_path": match["name"], "revision": match["revision"] or constants.DEFAULT_REVISION}


def commit_of(path: str) -> str | None:
    """The commit that the cached copy of a hub name is of; None for a folder, or where there is no copy."""
    if is_local(path):
        return None
    match = HUB_NAME.fullmatch(path)
    config = huggingface_hub.try_to_load_from_cache(match["name"], "config.json", revision=match["revision"])
    return Path(config).parent.name if isinstance(config, str) else None


@functools.cache
def reach_hub() -> bool:
    """Whether the hub answers; where it does not, nothing in this process asks it again."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception:  # of the HTTP library, which is not this project's choice
        go_offline()
        return False
    return True


def go_offline() -> None:
    """What HF_HUB_OFFLINE=1 does, after the libraries have read it."""
    import datasets

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def describe_hub_error(error: BaseException, kind: str = "model") -> str | None:
    """Why a hub name could not be read and what to set; None for errors that are not the hub's.

    Args:
        kind: "model" or "data set", as the hub knows it.
    """
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    found = functools.partial(_first, causes)
    if found(errors.GatedRepoError):
        return "the hub gives it only to those who have accepted its terms; accept them there and set HF_TOKEN"
    if found(errors.RevisionNotFoundError):
        return f"the hub has no such revision of that {kind}"
    if found(errors.RepositoryNotFoundError):
        return f"the hub has no such {kind}; if it is a private one, set HF_TOKEN"
    if constants.HF_HUB_OFFLINE and found(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        why = "HF_HUB_OFFLINE is set" if OFFLINE_BY_CHOICE else f"the hub ({constants.ENDPOINT}) does not answer"
        place = constants.HF_HUB_CACHE if kind == "model" else datasets_cache()
        return f"{why}, and {place} (see HF_HOME) holds no copy of that {kind} and revision; name a local folder"
    return None


def datasets_cache() -> str:
    """Where `datasets` keeps its copies."""
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


def _first(causes: list[BaseException], *kinds: type[BaseException]) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)
