"""A method of one's own, from its file to a finished run: those of examples/, and what is said about bad ones."""

import json
from pathlib import Path

import pytest

from tests.cases import cases
from tests.helpers import STEP3, Workshop, read_metrics, run_script
from tests.test_step3_cli import same_weights

pytestmark = pytest.mark.slow

SOFTMIN, AGREEING = "examples/softmin_score.py:SoftMin", "examples/agreeing_advantage.py:Agreeing"
GRADNORM = "examples/gradnorm.py:GradNorm"


def test_a_method_that_mixes_scores_has_one_critic(workshop: Workshop) -> None:
    (step, _) = read_metrics(workshop.step3("softmin", algorithm=SOFTMIN, softmin_temperature=0.5))
    assert [tag for tag in step if tag.startswith("loss/critic/")] == ["loss/critic/mixed"]
    assert step["coefficient/mixed"] == 1 and step["reward/helpfulness"] != step["reward/harmlessness"]
    planned = run_script(STEP3, workshop.step3_flags("planned", algorithm=SOFTMIN, dry_run=True))
    assert planned.code == 0 and "start of the reference and of 1 critic" in planned.stdout, planned.stderr


def test_of_one_score_the_mixture_is_that_score(workshop: Workshop) -> None:
    """A soft minimum of two objectives that are the same is PPO on either, from a critic that starts at 0."""
    same = {"reward_model": (f"a={workshop.reward}", f"b={workshop.reward}"), "cost_model": None, "critic": "shared"}
    mixed = workshop.step3("mixed_same", algorithm=SOFTMIN, **same)
    alone = workshop.step3("alone", algorithm="ppo", monitor="b", **same)
    pairs = zip(read_metrics(mixed), read_metrics(alone), strict=True)
    assert all(ours["kl"] == pytest.approx(plain["kl"], abs=1e-4) for ours, plain in pairs)


def test_a_method_that_mixes_advantages(workshop: Workshop) -> None:
    """With the factor 1 it is morlhf."""
    plain = workshop.step3("agreeing_plain", algorithm=AGREEING, disagreement=1.0)
    equal = workshop.step3("equal", algorithm="morlhf")
    for ours, other in zip(read_metrics(plain), read_metrics(equal), strict=True):
        assert ours["loss/actor"] == pytest.approx(other["loss/actor"], abs=1e-6)
        assert not [tag for tag in ours if tag.startswith("coefficient/")]
    careful = workshop.step3("agreeing", algorithm=AGREEING, log_gradients=True)
    assert not same_weights(careful, plain)
    assert all("gradient/cosine/helpfulness_harmlessness" in step for step in read_metrics(careful))


@pytest.mark.parametrize("ranks", cases([1, 2], always=[2]))
def test_a_state_goes_on_from_a_checkpoint(workshop: Workshop, ranks: int) -> None:
    common = {"ranks": ranks, "algorithm": GRADNORM, "gradnorm_step_size": 0.2, "zero_stage": 2, "lora_dim": 4,
              "lr_scheduler_type": "constant"}  # fmt: skip
    whole = workshop.step3(f"whole_{ranks}", **common)
    keeping = {"keep_checkpoints": True, "checkpoint_interval": 1}
    halfway = workshop.step3(f"halfway_{ranks}", **common, **keeping, max_steps=1)
    first = json.loads((halfway / "algorithm_state.json").read_text())
    assert first["step"] == 1 and first["learned"][0] != pytest.approx(first["learned"][1])
    workshop.step3(f"halfway_{ranks}", **common, **keeping, fresh=False, allow_changed_flags=True)
    assert same_weights(whole, halfway)
    ended = json.loads((halfway / "algorithm_state.json").read_text())
    assert ended == json.loads((whole / "algorithm_state.json").read_text()) and ended["learned"] != first["learned"]


def test_a_changed_file_is_another_run(workshop: Workshop, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(Path("examples/gradnorm.py").read_text())
    settings = {"algorithm": f"{own}:GradNorm", "keep_checkpoints": True, "checkpoint_interval": 1, "max_steps": 1}
    workshop.step3("own", **settings)
    own.write_text(own.read_text().replace("min=1e-3", "min=1e-2"))
    result = run_script(STEP3, workshop.step3_flags("own", **settings | {"max_steps": 2}, allow_changed_flags=False))
    assert result.code == 2 and "--algorithm's file contents" in result.stderr, result.stderr


def test_any_default_and_percent_signs_are_shown(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from utils.combining.algorithm import Option\nfrom utils.combining.mgda import MGDA\nclass Mine(MGDA):\n"
        " name, summary, options = 'x', 'y', (Option('mode', str, 'mean', 'in % of it'),)\n")  # fmt: skip
    said = run_script(STEP3, ["--algorithm", f"{tmp_path}/own.py:Mine", "--help"]).stdout
    assert "x: in % of it; mean unless given" in " ".join(said.split())


def test_its_flags_are_in_help(workshop: Workshop) -> None:
    said = run_script(STEP3, ["--algorithm", GRADNORM, "--help"]).stdout
    assert "--gradnorm_step_size ETA" in said and "gradnorm: η of the weights" in said
    assert "--gradnorm_step_size" not in run_script(STEP3, ["--help"]).stdout


BAD = {
    "no file": ("missing.py:Mine", "", "no such file"),
    "no class": ("own.py:Mine", "x = 1", "has no class 'Mine' (it defines none)"),
    "no method": ("own.py:Mine", "class Mine: pass", "is no class made from ScoreLevel or AdvantageLevel or"),
    "a function": ("own.py:Mine", "def Mine(): pass", "is no class made from"),
    "half a method": (
        "own.py:Mine", "from utils.combining.algorithm import ScoreLevel\nclass Mine(ScoreLevel): name = summary = 'x'",
        "does not define mix_scores"),
    "no name": (
        "own.py:Mine", "from utils.combining.mgda import *\nclass Mine(GradientLevel):\n"
        " def coefficients(self, gram, losses): return losses", "does not say its name and summary"),
    "a syntax error": ("own.py:Mine", "class Mine(", "fails to be imported (SyntaxError"),
    "another's flag": (
        "own.py:Mine", "from utils.combining.algorithm import Option\nfrom utils.combining.mgda import MGDA\n"
        "class Mine(MGDA): name, summary, options = 'x', 'y', (Option('max_steps', int, 1, 'help'),)",
        "its option --max_steps is a flag of this script"),
    "another method's flag": (
        "own.py:Mine", "from utils.combining.algorithm import Option\nfrom utils.combining.mgda import MGDA\n"
        "class Mine(MGDA): name, summary, options = 'x', 'y', (Option('rescale_power', int, 1, 'help'),)",
        "its option --rescale_power is another one of gapo"),
    "a flag with a dash": (
        "own.py:Mine", "from utils.combining.algorithm import Option\nfrom utils.combining.mgda import MGDA\n"
        "class Mine(MGDA): name, summary, options = 'x', 'y', (Option('my-step', int, 1, 'help'),)",
        "its option 'my-step' is no name of a flag"),
    "the name of another": (
        "own.py:Mine", "from utils.combining.mgda import MGDA\nclass Mine(MGDA): name, summary = 'gapo', 'x'",
        "calls itself gapo, which is another method"),
    "another shape": (
        "own.py:Mine", "from utils.combining.mgda import MGDA\nclass Mine(MGDA):\n name, summary = 'x', 'y'\n"
        " def coefficients(self, gram, losses): return losses[:1]", "coefficients returns [1], not [2]"),
    "too few objectives": (SOFTMIN, "", "combines 2 objectives at least, not 1 (helpfulness)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_one_ends_in_one_line(workshop: Workshop, tmp_path: Path, what: str) -> None:
    spec, code, reason = BAD[what]
    if not spec.startswith("examples"):
        if code:
            (tmp_path / "own.py").write_text(code)
        spec = f"{tmp_path}/{spec}"
    changes = {"monitor": "harmlessness"} if what == "too few objectives" else {}
    result = run_script(STEP3, workshop.step3_flags("refused", algorithm=spec, **changes))
    assert (result.code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith("error: ") and reason in result.stderr, result.stderr
