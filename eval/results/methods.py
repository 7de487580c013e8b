"""The table of methods: what the report calls a run, where it places it, how it draws it.

`presets/methods.txt` explains its columns; run_all.sh reads it, too (utils/launch/methods.sh). A user's own rows are in
`methods.txt` beside the outputs of the runs, where run_all.sh leaves them. Only the standard library is needed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.process.errors import UserError

TABLE = Path(__file__).resolve().parents[2] / "presets" / "methods.txt"
COLUMNS = ("run", "method", "detail", "place", "style", "stands for", "made by", "from", "flags")
PLACES = START, EXPERT, BASELINE, METHOD, FRONT, OTHER = "start", "expert", "baseline", "method", "front", "other"
OBJECTIVE, WEIGHTS = "{objective}", "{w}"  # patterns in names; the third is {equal}
FULL, EQUAL = "_full", "equal"
OTHER_COLORS = ("#7F7F7F", "#1F4E79", "#5E8C0A", "#0E7C86")  # of what no row knows

_RUN = re.compile(r"[A-Za-z0-9_.]+(\{(objective|w|equal)\})?")
_STYLE = re.compile(r"(#[0-9A-Fa-f]{6}) ([ov^<>8spPhHDdXx*+])")  # matplotlib's markers
_POINT = re.compile(r"\w+_\d*\.?\d+")  # of a front
_NUMBERS = re.compile(r"\d*\.?\d+(_\d*\.?\d+)*")

Weight = float | tuple[float, ...]  # of the first of two objectives, or those of all


@dataclass(frozen=True)
class Method:
    """What a run is, as its row says or as its name alone does.

    Attributes:
        run: the name of its runs, or a pattern for it.
        title: what the report calls the method; `family` is how files do.
        detail: what tells the runs of a method apart.
        place: one of `PLACES`.
        leads: whether it is what the others are compared with, of single policies or of fronts.
        stands_for: the run whose place on a front it takes; '' for none.
        is_own: whether it is a user's own.
    """

    run: str
    family: str
    title: str
    detail: str = ""
    place: str = OTHER
    leads: bool = False
    color: str = OTHER_COLORS[0]
    marker: str = "o"
    stands_for: str = ""
    compares_gradients: bool = False
    is_own: bool = True


@dataclass(frozen=True)
class Match:
    """What a name says: its method (with the detail of this run), and the weight or the objective in it."""

    method: Method
    weight: Weight | None = None
    objective: str = ""


# ---- rows --------------------------------------------------------------------------------------------------

_known: tuple[Method, ...] = ()


def use_methods(own: Path | None = None) -> None:
    """Have the rows of the project's table known, and those of a file of the user's own if it is there.

    Raises:
        UserError: see `read_methods`.
    """
    global _known
    _known = read_methods(TABLE)
    if own is not None and own.is_file():
        _known += read_methods(own, _known)


def known_methods() -> tuple[Method, ...]:
    """All rows, in the order of the report."""
    if not _known:
        use_methods()
    return _known


def read_methods(file: Path, others: Sequence[Method] = ()) -> tuple[Method, ...]:
    """The rows of a table; a user's own where there are `others` before it.

    Raises:
        UserError: a file that cannot be read, or a line that is no row; names file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    rows: list[Method] = []
    for number, line in enumerate(lines, start=1):
        cells = tuple(cell.strip() for cell in line.split("|"))
        if not line.strip() or line.lstrip().startswith("#") or cells == COLUMNS or cells[0].startswith("@"):
            continue
        if len(cells) != len(COLUMNS):
            raise UserError(f"{file}:{number}: the columns are {' | '.join(COLUMNS)}")
        row = make_method(dict(zip(COLUMNS, cells, strict=True)), f"{file}:{number}", is_own=bool(others))
        if row.run in {other.run for other in (*others, *rows)}:
            raise UserError(f"{file}:{number}: there is a row {row.run} already")
        rows.append(row)
    return tuple(rows)


def make_method(cells: dict[str, str], where: str, is_own: bool) -> Method:
    """The method of a row, {column: cell}. Raises: UserError: a name, place or style that is none."""
    place, _, leads = cells["place"].partition(" ")
    style = _STYLE.fullmatch(cells["style"])
    if not _RUN.fullmatch(cells["run"]):
        raise UserError(f'{where}: "{cells["run"]}" cannot be the name of a run')
    if not cells["method"]:
        raise UserError(f"{where}: the method has no title")
    if place not in PLACES or leads not in ("", "lead"):
        raise UserError(f'{where}: "{cells["place"]}" is no place ({", ".join(PLACES)}, and lead after one of them)')
    if not style:
        raise UserError(f'{where}: "{cells["style"]}" is no style, such as #1B8A5A o')
    if cells["stands for"] and not _POINT.fullmatch(cells["stands for"]):
        raise UserError(f'{where}: stands for "{cells["stands for"]}", which is no point of a front')
    return Method(
        run=cells["run"],
        family=re.sub(r"\W+", "_", cells["method"].lower()),
        title=cells["method"],
        detail=cells["detail"],
        place=place,
        leads=bool(leads),
        color=style[1],
        marker=style[2],
        stands_for=cells["stands for"],
        compares_gradients="{scope}" in cells["flags"],
        is_own=is_own,
    )


# ---- names -------------------------------------------------------------------------------------------------


def match_run(base: str) -> Match:
    """What a run's name without condition and seed stands for; one that no row knows for itself."""
    if found := find_row(base):
        return found
    found = find_row(base.removesuffix(FULL)) if base.endswith(FULL) else None
    if found and found.method.compares_gradients:
        return Match(outside_the_table(found.method, "full"), objective=found.objective)
    return Match(find_relative(base))


def find_row(base: str) -> Match | None:
    """The row of a name: one of that very name before one of a pattern."""
    for method in known_methods():
        if method.run == base:
            return Match(method)
    for method in known_methods():
        stem, brace, pattern = method.run.partition("{")
        rest = base.removeprefix(stem)
        if not brace or rest == base or not rest:
            continue
        pattern = brace + pattern
        if pattern == OBJECTIVE and is_front_family(base):  # dpo_lw is no expert of an objective lw
            continue
        if pattern == OBJECTIVE:
            return Match(filled(method, pattern, rest.replace("_", " ")), objective=rest)
        weight = read_weight(rest)
        if weight is not None and (pattern == WEIGHTS or are_equal(weight)):
            text = EQUAL if isinstance(weight, tuple) and are_equal(weight) else rest.replace("_", "/")
            return Match(filled(method, pattern, text), weight)
    return None


def filled(method: Method, pattern: str, text: str) -> Method:
    return replace(method, detail=method.detail.replace(pattern, text))


def find_relative(base: str) -> Method:
    """What a name that no row knows begins with, the longest such row or method; or a method of its own."""
    names = {method.family: replace(method, detail="") for method in reversed(known_methods())}
    names |= {method.run: method for method in known_methods()}
    begun = [name for name in names if base == name or base.startswith(f"{name}_")]
    if begun:
        name = max(begun, key=len)
        return outside_the_table(names[name], base[len(name) :].strip("_").replace("_", " "))
    return Method(base, base, base, color=OTHER_COLORS[sum(base.encode()) % len(OTHER_COLORS)])


def outside_the_table(method: Method, rest: str) -> Method:
    """A relative of a row: it looks alike, and has no place but among the others."""
    detail = f"{method.detail} {rest}".strip()
    return replace(method, detail=detail, place=OTHER, leads=False, stands_for="")


def family_title(family: str) -> str:
    """What the report calls the methods of a family."""
    return next((method.title for method in known_methods() if method.family == family), family)


def is_front_family(family: str) -> bool:
    return any(method.family == family and method.place == FRONT for method in known_methods())


def is_own_family(family: str) -> bool:
    """Whether no row of the project's is of it."""
    return all(method.is_own for method in known_methods() if method.family == family)


def lead_run() -> str:
    """The single policy that the others are compared with."""
    return next(method.run for method in known_methods() if method.leads and method.place != FRONT)


def lead_front() -> str:
    """The family whose front the others are compared with."""
    return next(method.family for method in known_methods() if method.leads and method.place == FRONT)


# ---- weights -----------------------------------------------------------------------------------------------


def read_weight(text: str) -> Weight | None:
    """'0.2' -> 0.2; '0.6_0.2_0.2' -> (0.6, 0.2, 0.2); None for anything else."""
    if not _NUMBERS.fullmatch(text):
        return None
    weights = tuple(map(float, text.split("_")))
    return weights if len(weights) > 1 else weights[0]


def preference(weight: Weight) -> tuple[float, ...]:
    """The weights of all objectives, sum 1."""
    if not isinstance(weight, tuple):
        return weight, 1 - weight
    total = sum(weight) or 1.0
    return tuple(share / total for share in weight)


def are_equal(weight: Weight) -> bool:
    return len(set(preference(weight))) == 1


def show_weight(weight: Weight) -> str:
    """'0.2', or '0.6/0.2/0.2'."""
    return "/".join(f"{share:g}" for share in (weight if isinstance(weight, tuple) else (weight,)))
