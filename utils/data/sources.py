"""Where rows come from: local files (jsonl, json, csv, parquet, mostly also gzipped), folders, the hub.

Every row carries its place: "file:line" for jsonl and csv, "file:row 3" for json and parquet, which have no
lines, "name:index" for the hub. Whatever is wrong with a file ends in a `UserError` that names it.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from utils.data.rows import Row
from utils.process.errors import UserError

HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<split>[\w.-]+)(@(?P<revision>[\w./-]+))?)?")
COMMIT = re.compile(r"[0-9a-f]{40}")  # as `datasets` calls the folder of a copy
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# How files begin that are mistaken for text in UTF-8.
OTHER_CONTENTS = {
    b"\x1f\x8b": "gzip data (a name that ends in .gz says so)",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "parquet",
    b"PK\x03\x04": "a zip archive",
}
Located = tuple[str, Any]  # (place inside the file, row)


@dataclass(frozen=True)
class Source:
    """One file or hub data set, and the fraction of its records to keep."""

    name: str
    fraction: float
    on_hub: bool

    def rows(self) -> Iterator[Row]:
        """The rows in order; raises `UserError` for anything unreadable, and when there are none."""
        empty = True
        for place, fields in (_read_hub if self.on_hub else _read_file)(self.name):
            if not isinstance(fields, dict):
                raise UserError(
                    f"{self.name}:{place}: expected an object with named fields, found {type(fields).__name__}"
                )
            empty = False
            yield Row(fields, f"{self.name}:{place}")
        if empty:
            raise UserError(f"{self.name}: holds no rows")


def parse_spec(spec: str) -> list[Source]:
    """Sources of "PATH_OR_NAME[:fraction][,...]"; a folder stands for the data files below it, sorted."""
    sources = []
    for part in spec.split(","):
        name, fraction = _split_fraction(part.strip(), spec)
        path = _path_of(name)
        if path.is_dir():
            sources += [Source(str(file), fraction, on_hub=False) for file in _files_below(path)]
        elif path.exists():
            _file_kind(path)
            if not path.is_file():  # opening a pipe would wait for ever
                raise UserError(f"{name}: not a regular file")
            sources.append(Source(str(path), fraction, on_hub=False))
        elif is_hub_data(name):
            sources.append(Source(name, fraction, on_hub=True))
        else:
            raise UserError(f"{name}: no such file or folder")
    return sources


def is_hub_data(name: str) -> bool:
    """Whether `name` means a data set on the hub; what looks like a file here does not become one by a typo."""
    path = _path_of(name)
    like_a_file = path.exists() or path.parent.exists() or _kind_or_none(path) is not None
    return not like_a_file and HUB_NAME.fullmatch(name) is not None


def _path_of(name: str) -> Path:
    """The path that a name means, if it can be one."""
    try:
        path = Path(name).expanduser()
        path.exists()
        str(path).encode()
    except (OSError, RuntimeError) as error:  # too long; the home of a user that is unknown
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name[:100]}: cannot be a file or folder ({reason})") from None
    except UnicodeEncodeError:
        raise UserError(f"{ascii(name)}: the name is not UTF-8") from None
    return path


def _split_fraction(part: str, spec: str) -> tuple[str, float]:
    name, colon, number = part.rpartition(":")
    try:
        fraction = float(number)
    except ValueError:
        name, colon = part, ""
    if not colon:
        name, fraction = part, 1.0
    if not name:
        raise UserError(f"'{spec}': a file or data set name is missing")
    if not 0 < fraction <= 1:
        raise UserError(f"'{part}': the fraction must be above 0 and at most 1")
    return name, fraction


def _files_below(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and _kind_or_none(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{folder}: holds no data file ({_known_kinds()})")
    return files


def _read_file(name: str) -> Iterator[Located]:
    """Rows of a local file with their places; the errors of opening and unpacking become `UserError`."""
    path = Path(name)
    read = _READERS[_file_kind(path)]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from read(file, name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name}: the gzip file is truncated or damaged ({error})") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error


def _read_jsonl(file: BinaryIO, name: str) -> Iterator[Located]:
    # Binary files are split at "\n" alone: texts may hold the other line separators of Unicode.
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
        if line.strip():
            yield str(number), _parse_json(line, name, number)


def _read_json(file: BinaryIO, name: str) -> Iterator[Located]:
    content = file.read().removeprefix(BYTE_ORDER_MARK)
    first_line, _, rest = content.strip().partition(b"\n")
    if first_line.startswith(b"{") and first_line.rstrip().endswith(b"}") and rest.strip():
        yield from _read_jsonl(io.BytesIO(content), name)  # many exporters name JSON lines ".json"
        return
    if not content.strip():
        return
    rows = _parse_json(content, name, 1)
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield f"row {number}", row


def _parse_json(content: bytes, name: str, first_line: int) -> Any:
    try:
        # Without the line break at the end, else an error there would be reported one line below.
        return json.loads(content.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise UserError(f"{name}:{line}: {_not_utf8(content)}") from error
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        if b"\0" in content:
            raise UserError(f"{name}:{line}: holds zero bytes, as UTF-16 does; UTF-8 is needed") from error
        raise UserError(f"{name}:{line}: malformed JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or an integer of too many digits
        raise UserError(f"{name}:{first_line}: unusable JSON ({_one_line(error)})") from error


def _not_utf8(content: bytes) -> str:
    """What to say of bytes that are not UTF-8."""
    found = next((what for start, what in OTHER_CONTENTS.items() if content.startswith(start)), None)
    return "the text is not UTF-8" + (f" but {found}" if found else "")


def _read_csv(file: BinaryIO, name: str) -> Iterator[Located]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long dialogue
    start = file.read(4)
    file.seek(0)
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(f"{name}:{line}: {len(cells)} cells, but the header names {len(header)} columns")
            if cells:
                yield str(line), dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}:{line}: malformed CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{line}: {_not_utf8(start)}") from error


def _read_parquet(file: BinaryIO, name: str) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield f"row {number}", fields
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: cannot be read as parquet ({_one_line(error)})") from error


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[Located]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _kind_or_none(path: Path) -> str | None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    unpackable = path.suffix != ".gz" or plain.suffix != ".parquet"
    return plain.suffix if plain.suffix in _READERS and unpackable else None


def _file_kind(path: Path) -> str:
    kind = _kind_or_none(path)
    if kind is None:
        raise UserError(f"{path}: not a kind of file that can be read ({_known_kinds()})")
    return kind


def _known_kinds() -> str:
    return ", ".join(_READERS) + "; .gz added to any but the last"


def _read_hub(name: str) -> Iterator[Located]:
    """Rows of "owner/name[@split[@revision]]" through the `datasets` library; the split is train unless said."""
    import datasets
    import huggingface_hub

    from utils.cli.hub import describe_hub_error, reach_hub

    match = HUB_NAME.fullmatch(name)
    huggingface_hub.logging.set_verbosity_error()  # no warning for each retry: the last failure is reported
    split = match["split"] or "train"
    reach_hub()
    try:
        dataset = datasets.load_dataset(match["name"], split=split, revision=match["revision"])
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
        huggingface_hub.errors.HTTPError,
    ) as error:
        reason = describe_hub_error(error, "data set")
        reason = reason or f"the hub does not give the split '{split}' of such a data set ({_one_line(error)})"
        raise UserError(f"{name}: no file or folder here, and {reason}") from error
    _check_commit(name, match["revision"], dataset.cache_files)
    for index, fields in enumerate(dataset):
        yield str(index), fields


def _check_commit(name: str, revision: str | None, files: list[dict[str, Any]]) -> None:
    """Raises: UserError: `datasets`, which without the hub takes the newest copy it has, took one of another commit."""
    found = Path(files[0]["filename"]).parent.name if files else ""
    if revision and all(COMMIT.fullmatch(commit) for commit in (revision, found)) and found != revision:
        raise UserError(f"{name}: there is no copy of that commit, only of {found}, and the hub does not answer")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
