"""Host memory of loading a model for its engine: one parameter after the other, against the whole model first."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM

from tests.benchmarks.measure import give_memory_back, resident_peak, seconds_of, single
from tests.benchmarks.ranks import run_ranks
from tests.benchmarks.section import Job, Row, Section, Settings
from tests.benchmarks.synthetic import SIZES, Load, arguments_of, make_decoder
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, place
from utils.models.configs import DTYPES
from utils.models.loading import load_causal_lm
from utils.process.distributed import all_gather_objects

SHARDS, FLOAT32 = 5, 4  # files of the model, about; bytes
ALLOWED_SHARDS = 1.2
MEGABYTE = 2**20
LAYOUTS = ((3, 2, "fp32"), (3, 2, "bf16"), (0, 1, "fp32"), (0, 1, "bf16"))  # ZeRO stage, ranks, type


def load_whole(folder: str, dtype: str, config: dict) -> None:
    """transformers reads the model; then it is partitioned."""
    place(AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]), config)


def load_one_by_one(folder: str, dtype: str, config: dict) -> None:
    with arriving(config):
        model = load_causal_lm(folder, "--actor_model", DTYPES[dtype])
    place(model, config)


def loading_peak(function: Callable, folder: str, stage: int, ranks: int, dtype: str) -> tuple[int, float]:
    """Bytes that the rank which takes most of them takes more than before; seconds. In fresh processes."""
    config = engine_config(arguments_of(Load("tiny", dtype, ranks, 1, 1), ranks, stage), frozen=True)
    tiny, model = (str(Path(folder) / name) for name in ("tiny", "model"))
    function(tiny, dtype, config)  # what libraries take for their first use stays
    give_memory_back()
    before, seconds = resident_peak(lambda: None), []
    peak = resident_peak(lambda: seconds.append(seconds_of(lambda: function(model, dtype, config))))
    return max(all_gather_objects(peak - before)), seconds[0]


def loading_row(size: str, stage: int, ranks: int, dtype: str) -> Row:
    """One row, for a model stored in float32."""
    with tempfile.TemporaryDirectory() as folder:
        for name, one in (("tiny", "tiny"), ("model", size)):
            shard = FLOAT32 * SIZES[one].parameters // SHARDS
            make_decoder(Load(one, "fp32", 1, 64, 64)).save_pretrained(Path(folder) / name, max_shard_size=shard)
        shard = max(file.stat().st_size for file in (Path(folder) / "model").glob("*.safetensors"))
        peaks = {
            function: run_ranks(loading_peak, function, folder, stage, ranks, dtype, ranks=ranks)
            for function in (load_whole, load_one_by_one)
        }
    part = SIZES[size].parameters * DTYPES[dtype].itemsize // (ranks if stage == 3 else 1)
    (whole, seconds_whole), (ours, seconds) = peaks.values()
    return {
        "ZeRO": stage, "ranks": ranks, "type": dtype, "parameters": f"{SIZES[size].parameters:,}",
        "part [MB]": round(part / MEGABYTE), "largest file [MB]": round(shard / MEGABYTE),
        "whole [MB]": round(whole / MEGABYTE), "one by one [MB]": round(ours / MEGABYTE),
        f"one by one / (part + {ALLOWED_SHARDS} files)": single(ours / (part + ALLOWED_SHARDS * shard), bar=1.0),
        "whole [s]": round(seconds_whole, 2), "one by one [s]": round(seconds, 2),
    }  # fmt: skip


def jobs(settings: Settings) -> list[Job]:
    return [
        Job(f"ZeRO-{stage}, ranks: {ranks}, {dtype}", loading_row, (settings.loading_size, stage, ranks, dtype), 0, 20)
        for stage, ranks, dtype in LAYOUTS
        if ranks in settings.ranks
    ]


def rows(settings: Settings, answers: list[Row]) -> list[Row]:
    return answers


SECTION = Section(
    title="Host memory of loading a frozen model, up to its engine",
    note="The most that a rank's resident memory has grown, mapped files included, in fresh processes: transformers"
    " reads the model whole and DeepSpeed partitions it (whole), or each parameter goes to its place when it is read"
    " (one by one). The model is stored in float32, in several files. Allowed: the rank's part in the type of the run,"
    " and 1.2 files. On a GPU without ZeRO-3 the part is not the host's.",
    jobs=jobs,
    rows=rows,
)
