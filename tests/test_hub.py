"""Models and data sets by their names on a hub: copies in the cache, revisions, and one line where there is none."""

import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import EXHAUSTIVE
from tests.helpers import Workshop, run_command

pytestmark = pytest.mark.slow

COMMIT, OTHER = "0123456789" * 4, "abcdef0123" * 4
LOAD = """
import json, sys
from utils.data.sources import parse_spec
from utils.process.errors import UserError
from utils.cli.hub import commit_of
from utils.models.loading import load_causal_lm
from utils.models.configs import load_tokenizer
from utils.launch.pin_revisions import main as pin
PINNED = ["--model", "org/policy", "--model", "org/policy@v1", "--model", ".",
          "--data", "org/prompts:0.5,org/prompts@train@refs/pr/1"]
for kind, name in json.loads(sys.argv[1]):
    try:
        if kind == "data":
            print(len([list(source.rows()) for source in parse_spec(name)][0]), "rows")
        elif kind == "pin":
            sys.argv = ["pin_revisions.py", "--file", name, *PINNED]
            pin()
        else:
            vocabulary, model = len(load_tokenizer(name, "--model")), load_causal_lm(name, "--model")
            print(vocabulary, model.num_parameters(), commit_of(name))
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def home(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME with copies of org/policy, as main and a commit, org/adapters, and org/prompts at another commit."""
    import datasets

    home = tmp_path_factory.mktemp("hf_home")
    model = home / "hub/models--org--policy"
    shutil.copytree(workshop.base, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    adapters = home / "hub/models--org--adapters"
    (adapters / "snapshots" / COMMIT).mkdir(parents=True)
    (adapters / "snapshots" / COMMIT / "adapter_config.json").write_text("{}")
    (adapters / "refs").mkdir()
    (adapters / "refs/main").write_text(COMMIT)
    made = datasets.load_dataset("json", data_files=str(workshop.prompts), split="train", cache_dir=str(home / "made"))
    copy = home / "datasets/org___prompts/default/0.0.0" / OTHER
    copy.mkdir(parents=True)
    shutil.copy(made.cache_files[0]["filename"], copy / "prompts-train.arrow")
    info = Path(made.cache_files[0]["filename"]).parent / "dataset_info.json"
    (copy / "dataset_info.json").write_text(json.dumps(json.loads(info.read_text()) | {"dataset_name": "prompts"}))
    return home


def load(names: list[tuple[str, str]], **variables: str) -> list[str]:
    """What loading each (kind, name) says, in one process with these environment variables."""
    result = run_command([sys.executable, "-c", LOAD, json.dumps(names)], timeout=60, env=os.environ | variables)
    assert result.code == 0, result.stderr
    return result.stdout.splitlines()


def test_copies_in_the_cache_are_found_by_name_and_revision(home: Path) -> None:
    names = [
        ("model", "org/policy"), ("model", f"org/policy@{COMMIT}"), ("model", f"org/policy@{OTHER}"),
        ("model", "org/nothing"), ("data", "org/prompts"), ("data", f"org/prompts@train@{OTHER}:0.5"),
        ("data", f"org/prompts@train@{COMMIT}"), ("data", "org/nothing"), ("pin", str(home / "revisions.json")),
    ]  # fmt: skip
    said = load(names, HF_HOME=str(home), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert said[0] == said[1] and said[0].endswith(f" {COMMIT}") and said[0].startswith("600 ")
    for name, line in zip((f"org/policy@{OTHER}", "org/nothing"), said[2:4], strict=True):
        assert line == (
            f"--model {name}: HF_HUB_OFFLINE is set, and {home}/hub (see HF_HOME) holds no copy of that model"
            " and revision; name a local folder"
        )
    assert said[4:6] == ["64 rows"] * 2
    assert said[6] == (
        f"org/prompts@train@{COMMIT}: there is no copy of that commit, only of {OTHER}, and the hub does not answer"
    )
    assert said[7].startswith("org/nothing: no file or folder here, and HF_HUB_OFFLINE is set")
    data = "org/prompts:0.5,org/prompts@train@refs/pr/1"  # not pinned without the hub
    assert said[8:] == [f"org/policy@{COMMIT}", "org/policy@v1", ".", data]
    assert json.loads((home / "revisions.json").read_text()) == {"org/policy": COMMIT}


class Refusal(http.server.BaseHTTPRequestHandler):
    """A hub that has no model for anybody; why, the name tells. Of the data set org/prompts it knows the commit."""

    CODES = {"gated": "GatedRepo", "nothing": "RepoNotFound", "policy": "RevisionNotFound"}

    def do_HEAD(self) -> None:
        code = next((code for name, code in self.CODES.items() if name in self.path), None)
        self.send_response(404 if code else 200)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        if self.path != "/api/datasets/org/prompts":
            return self.do_HEAD()
        answer = json.dumps({"id": "org/prompts", "sha": OTHER}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that refuses everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@EXHAUSTIVE
def test_what_the_hub_refuses_is_told_in_one_line(hub: str, home: Path, tmp_path: Path) -> None:
    names = [("model", "org/gated"), ("model", "org/nothing"), ("model", f"org/policy@{OTHER}")]
    (tmp_path / "pins.json").write_text(json.dumps({"org/policy": COMMIT}))
    names.append(("pin", str(tmp_path / "pins.json")))
    said = load(names, HF_HOME=str(home), HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0")
    assert said == [
        "--model org/gated: the hub gives it only to those who have accepted its terms; accept them there and set"
        " HF_TOKEN",
        "--model org/nothing: the hub has no such model; if it is a private one, set HF_TOKEN",
        f"--model org/policy@{OTHER}: the hub has no such revision of that model",
        *(f"org/policy@{COMMIT}", "org/policy@v1", "."),
        f"org/prompts@train@{OTHER}:0.5,org/prompts@train@refs/pr/1",
    ]
    assert json.loads((tmp_path / "pins.json").read_text()) == {"org/policy": COMMIT, "datasets/org/prompts": OTHER}


@EXHAUSTIVE
def test_an_unreachable_hub_costs_seconds_and_the_cache_still_serves(home: Path) -> None:
    """Nothing listens on the port; without asking once, the libraries would try for minutes."""
    variables = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0",
                 "HF_DATASETS_OFFLINE": "0"}  # fmt: skip
    names = [("model", "org/policy"), ("model", "org/nothing"), ("data", "org/prompts"), ("model", "org/adapters")]
    said = load(names, **variables)
    assert said[3].startswith("--model org/adapters: adapters are read from folders alone")
    assert said[0].endswith(COMMIT) and said[2] == "64 rows"
    assert "--model org/nothing: the hub (http://127.0.0.1:9) does not answer, and" in said[1]
