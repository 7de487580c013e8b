"""The project's rooms: imports run downwards only; what lies outside a room in utils/ and eval/ is a command."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom upwards: a room imports from those before it, and from itself. `utils` and `eval` are the commands
# that lie in the folders themselves; stages and examples import nothing of each other.
ORDER = [
    "utils.process", "utils.output", "utils.cli", "utils.engines", "utils.data", "utils.instructions", "utils.models",
    "utils.steering", "utils.checkpoints", "utils.memory", "utils.policy", "utils.gradients", "utils.combining",
    "utils.scoring", "utils.supervised", "utils.launch", "utils.safe_rlhf_mini", "utils", "eval.results",
    "eval.chatting", "eval.judging", "eval.reporting", "eval",
]  # fmt: skip
TOP = ["examples", "step1_sft", "step2_reward", "step3_dpa", "step3_dpo", "step3_gapo"]
MOST_ENTRIES = 12  # of utils/ and eval/ beside their rooms


def modules() -> dict[str, Path]:
    """{dotted name: file} of all that is not a test."""
    folders = [ROOT / name for name in ("utils", "eval", *TOP)]
    return {dotted(path): path for folder in folders for path in folder.rglob("*.py")}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, known: set[str]) -> set[str]:
    """The project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known or {node.module}
    return found & known


def room(module: str) -> str:
    parts = module.split(".")
    inside = len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir()
    return ".".join(parts[:2]) if parts[0] in ("utils", "eval") and inside else parts[0]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(path, set(files)) - {"utils", "eval"} for name, path in files.items()}


def test_imports_run_downwards(graph: dict[str, set[str]]) -> None:
    upwards = []
    for module, imported in graph.items():
        own = room(module)
        below = ORDER[: ORDER.index(own)] if own in ORDER else ORDER
        upwards += [f"{module} -> {other}" for other in imported if room(other) != own and room(other) not in below]
    assert not upwards


def test_no_imports_in_a_circle(graph: dict[str, set[str]]) -> None:
    left = {module: set(imported) - {module} for module, imported in graph.items()}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("folder", ["utils", "eval"])
def test_outside_of_rooms_lie_commands_alone(folder: str) -> None:
    entries = [path for path in (ROOT / folder).iterdir() if path.is_file()]
    assert len(entries) <= MOST_ENTRIES
    for path in entries:
        if path.name != "__init__.py":
            assert path.suffix == ".py" and 'if __name__ == "__main__":' in path.read_text(), path


def test_every_room_says_what_may_enter() -> None:
    rooms = [ROOT / name.replace(".", "/") for name in ORDER if "." in name]
    assert {path for folder in ("utils", "eval") for path in (ROOT / folder).iterdir()
            if path.is_dir() and any(path.glob("*.py"))} == set(rooms)  # fmt: skip
    for path in rooms:
        first = (ast.get_docstring(ast.parse((path / "__init__.py").read_text())) or "").splitlines()[0]
        assert "may" in first, path
