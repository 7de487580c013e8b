"""utils/export_checkpoint.py: the very files that a run exports, from its checkpoint alone, by one plain process."""

import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GPT2Config

from tests.cases import cases
from tests.helpers import Result, Workshop, flags, read_weights, run_function, run_script
from utils import export_checkpoint
from utils.models.card import CARD
from utils.process.errors import run_main

pytestmark = pytest.mark.slow

SCRIPT = "utils/export_checkpoint.py"
KEPT = {"keep_checkpoints": True, "checkpoint_interval": 1, "checkpoints_kept": 9}


def exported(checkpoint: Path, output: Path, *more: str) -> Result:
    """The command in a process without a launcher's variables."""
    return run_script(SCRIPT, [str(checkpoint), "--output_dir", str(output), *more])


def check_same_files(run: Path, output: Path, but: tuple[str, ...] = ()) -> None:
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja"} <= names
    for name in names - {CARD, *but}:  # the card has the command that made it
        assert (output / name).read_bytes() == (run / name).read_bytes(), name


def check_refused(result: Result, *words: str) -> None:
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


# --- the same weights


@pytest.mark.parametrize(("stage", "ranks", "dtype"), cases(
    [(0, 1, "fp32"), (0, 2, "bf16"), (1, 2, "bf16"), (3, 3, "fp32"), (3, 2, "bf16")],
    always=[(0, 1, "fp32"), (3, 2, "bf16")],
))  # fmt: skip
def test_policy_of_step_3(workshop: Workshop, tmp_path: Path, stage: int, ranks: int, dtype: str) -> None:
    name = f"exported_{stage}_{dtype}"
    run = workshop.step3(name, ranks, max_steps=1, zero_stage=stage, dtype=dtype, **KEPT)
    shutil.copytree(run / "checkpoints/step_00000001", tmp_path / "step_00000001")  # it stands alone
    result = exported(tmp_path / "step_00000001", tmp_path / "policy")
    assert result.code == 0, result.stderr
    assert result.stdout.splitlines() == [f"actor of step 1 saved in {tmp_path}/policy"] and not result.stderr
    check_same_files(run, tmp_path / "policy")
    assert {weight.dtype for weight in read_weights(tmp_path / "policy").values()} == {
        torch.float32 if dtype == "fp32" else torch.bfloat16
    }


def supervised_flags(workshop: Workshop, output: Path, **changes: object) -> list[str]:
    return flags(**{
        "model_name_or_path": workshop.base, "output_dir": output, "max_length": 256, "export": "last",
        "per_device_train_batch_size": 32, "learning_rate": 1e-3, "num_warmup_steps": 0, "zero_stage": 3,
        **KEPT, "checkpoint_interval": 99,
    } | changes)  # fmt: skip


@pytest.mark.parametrize("stage", [0, 3])
def test_tied_embeddings_of_step_1(workshop: Workshop, tmp_path: Path, stage: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=18, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    run, data = tmp_path / "sft", workshop.folder / "data/sft_train.jsonl"
    changes = {"model_name_or_path": tmp_path / "tied", "data": f"{data}:0.2", "zero_stage": stage}
    result = run_script("step1_sft/main.py", supervised_flags(workshop, run, **changes), 2)
    assert result.code == 0, result.stderr
    result = exported(run, tmp_path / "policy")
    assert result.code == 0, result.stderr
    check_same_files(run, tmp_path / "policy")
    assert "lm_head.weight" not in read_weights(run)
    start, end = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "tied", tmp_path / "policy"))
    assert end.lm_head.weight is end.transformer.wte.weight
    assert not end.lm_head.weight.equal(start.lm_head.weight)


def test_best_epoch_of_step_1(workshop: Workshop, tmp_path: Path) -> None:
    """Four examples are learned by heart, which makes later epochs worse: the run and the command export an earlier."""
    changes = {"learning_rate": 0.03, "max_grad_norm": 0, "lr_scheduler_type": "constant", "num_train_epochs": 8}
    data = workshop.folder / "data/sft_train.jsonl"
    changes |= {"export": "best", "data": f"{data}:0.02", "validation_data": f"{data}:0.5", "zero_stage": 0}
    run = tmp_path / "run"
    result = run_script("step1_sft/main.py", supervised_flags(workshop, run, **changes))
    assert result.code == 0, result.stderr
    result = exported(run, tmp_path / "model")
    assert "the weights of the best epoch so far" in result.stdout, result.stderr
    check_same_files(run, tmp_path / "model")


def test_score_model_of_step_2(workshop: Workshop, tmp_path: Path) -> None:
    run, data = tmp_path / "reward", workshop.folder / "data/preferences_train.jsonl"
    changes = {"objective": "helpfulness", "kind": "reward", "data": data, "validation_fraction": 0.3}
    result = run_script("step2_reward/main.py", supervised_flags(workshop, run, **changes), 2)
    assert result.code == 0, result.stderr
    result = exported(run, tmp_path / "score")
    assert result.code == 0, result.stderr
    assert "note: mean and spread of the scores" in result.stdout
    check_same_files(run, tmp_path / "score", but=("config.json",))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "score")
    assert model.num_labels == 1 and model.score.weight.equal(read_weights(run)["score.weight"])


# --- which checkpoint, and what is wrong with it


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Path:
    """A run with two checkpoints."""
    return workshop.step3("with_checkpoints", 2, zero_stage=2, **KEPT)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_newest_whole_checkpoint_of_a_run(copy: Path, tmp_path: Path) -> None:
    for path in (copy, copy / "checkpoints"):
        result = exported(path, tmp_path / f"of_{path.name}")
        assert f"exporting {copy}/checkpoints/step_00000002" in result.stdout
        check_same_files(copy, tmp_path / f"of_{path.name}")
    flip_a_byte(copy / "checkpoints/step_00000002/engines/actor/mp_rank_00_model_states.pt")
    result = exported(copy, tmp_path / "before")
    assert result.code == 0, result.stderr
    damaged, taken, saved = result.stdout.splitlines()
    assert "step_00000002 is damaged" in damaged and "mp_rank_00_model_states.pt" in damaged
    assert taken == f"exporting {copy}/checkpoints/step_00000001" and saved.startswith("actor of step 1 ")
    first, last = read_weights(tmp_path / "before"), read_weights(copy)
    assert first.keys() == last.keys() and not all(first[name].equal(last[name]) for name in first)


def test_damaged_checkpoints_are_named(copy: Path, tmp_path: Path) -> None:
    checkpoint = copy / "checkpoints/step_00000002"
    flip_a_byte(checkpoint / "engines/critic_0/mp_rank_00_model_states.pt")
    check_refused(exported(checkpoint, tmp_path / "out"), str(checkpoint), "critic_0/mp_rank_00_model_states.pt")
    (copy / "checkpoints/step_00000001/manifest.json").unlink()
    check_refused(exported(copy, tmp_path / "out"), str(copy), "none of its 2 checkpoints is whole")
    assert not (tmp_path / "out").exists()


def test_code_in_a_checkpoint_is_not_run(copy: Path, tmp_path: Path) -> None:
    """Checksums say that a file is the one that was written, not by whom."""
    file = copy / "checkpoints/step_00000002/engines/actor/mp_rank_00_model_states.pt"
    torch.save({"module": Touch(tmp_path / "touched")}, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_checkpoint, "verify", lambda folder: None)
        with pytest.raises(export_checkpoint.UserError, match="mp_rank_00_model_states.pt"):
            call_main(str(copy / "checkpoints/step_00000002"), "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "touched").exists() and not (tmp_path / "out").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def call_main(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [SCRIPT, *arguments])
        export_checkpoint.main()


def test_bad_requests(run: Path, workshop: Workshop, tmp_path: Path) -> None:
    checkpoint, output = run / "checkpoints/step_00000002", tmp_path / "out"
    check_refused(exported(workshop.base, output), str(workshop.base), "no checkpoint there")
    check_refused(exported(tmp_path / "nothing", output), f"{tmp_path}/nothing", "no checkpoint there")
    check_refused(exported(checkpoint, output, "--engine", "judge"), "--engine judge", "actor, critic_0, critic_1")
    check_refused(exported(checkpoint, output, "--engine", "critic_1"), "--engine critic_1", "critic")
    assert not output.exists()
    before = sorted(path.name for path in run.iterdir())
    check_refused(exported(checkpoint, run), f"--output_dir {run}", "exists already")
    assert sorted(path.name for path in run.iterdir()) == before
    (tmp_path / "file").write_text("")
    check_refused(exported(checkpoint, tmp_path / "file/out"), f"--output_dir {tmp_path}/file", "cannot write there")


def with_little_room(arguments: list[str], limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [SCRIPT, *arguments]
    run_main(export_checkpoint.main)


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path) -> None:
    """The file system takes no more in the middle of the weights."""
    size, output = (run / "model.safetensors").stat().st_size, tmp_path / "folder/out"
    result = run_function(with_little_room, [str(run), "--output_dir", str(output)], size // 2)
    assert result.code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: --output_dir {output}: cannot be written")
    assert not list((tmp_path / "folder").iterdir())


def test_help_of_the_command() -> None:
    result = run_script(SCRIPT, ["--help"])
    assert result.code == 0 and "of your own" in " ".join(result.stdout.split())
