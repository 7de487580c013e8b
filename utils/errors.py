"""Errors a user can act on: one line that names the flag, or the file and line, and exit code 2."""

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT = 2
SECONDS_FOR_RANK_0 = 5  # the launcher kills all ranks once one has ended: rank 0 must have spoken by then


class UserError(Exception):
    """Bad input. The message is one line and names the culprit (a flag, or `file:line`)."""


def fail(message: str) -> NoReturn:
    """End the script over bad input. Every rank meets the same input, so only rank 0 speaks."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        time.sleep(SECONDS_FOR_RANK_0)
    sys.stdout.flush()
    sys.exit(EXIT_BAD_INPUT)


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        fail(str(error))
