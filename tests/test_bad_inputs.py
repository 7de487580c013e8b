"""Every bad input of `tests.bad_inputs`: one line that names the mistake, exit code 2, nothing changed."""

from pathlib import Path

import pytest

from tests.bad_inputs import Bench, cases, make_shared, problems, run_for_real, snapshot
from tests.helpers import Workshop, run_script

pytestmark = pytest.mark.slow

TABLE = cases()


@pytest.fixture(scope="module")
def shared(workshop: Workshop) -> Path:
    return make_shared(workshop)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input(name: str, workshop: Workshop, shared: Path, tmp_path: Path) -> None:
    case, bench = TABLE[name], Bench(workshop, shared, tmp_path / "case")
    bench.folder.mkdir()
    arguments = case.arguments(bench)
    before = snapshot(bench)
    result = run_for_real(case, arguments, bench)[0] if case.is_shell else run_script(case.script, arguments)
    wrong = problems(case, result, before, snapshot(bench))
    assert not wrong, wrong
