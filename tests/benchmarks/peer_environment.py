"""The environment that section `peers` finds TRL in: looked at, and made on request."""

import subprocess
import sys
import venv
from pathlib import Path

from utils.process.errors import Failure, UserError

REQUIREMENTS = Path(__file__).with_name("peers.txt")
# Run by the environment's own Python; the pins come on the command line.
UNSATISFIED = """
import importlib.metadata, sys
for pin in sys.argv[1:]:
    name, _, version = pin.partition("==")
    try:
        found = importlib.metadata.version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found != version:
        print(pin)
"""


def python_of(environment: str) -> Path:
    return Path(environment).absolute() / "bin" / "python"


def check_environment(environment: str | None, make: bool) -> None:
    """Find the pinned packages in an environment; first make it, or fill it, if that is asked for.

    Raises:
        UserError: none is named, or it lacks packages; says what to do.
        Failure: pip cannot install them.
    """
    if environment is None:
        raise UserError(
            "--sections peers: TRL is needed, in an environment of its own: name its folder with --peer_environment,"
            " and add --make_peer_environment to have it made with pip"
        )
    missing = missing_pins(environment)
    if missing and make:
        make_environment(environment)
    elif missing:
        raise UserError(
            f"--peer_environment {environment}: lacks {' '.join(missing)}; --make_peer_environment installs"
            f" {REQUIREMENTS.name} there with pip"
        )


def missing_pins(environment: str) -> list[str]:
    """The pins that an environment does not satisfy; all of them where there is none."""
    pins, python = REQUIREMENTS.read_text().split(), python_of(environment)
    if not python.exists():
        return pins
    return subprocess.run([python, "-c", UNSATISFIED, *pins], capture_output=True, text=True).stdout.split()


def make_environment(environment: str) -> None:
    """Raises: Failure: pip ends with an error."""
    print(f"installing {REQUIREMENTS.name} into {environment} (once, a few minutes)", file=sys.stderr, flush=True)
    venv.create(environment, with_pip=True)
    pip = [python_of(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run([*pip, "-r", REQUIREMENTS], capture_output=True, text=True)
    if result.returncode:
        reason = next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "pip has failed")
        raise Failure(f"--make_peer_environment: {reason}")
