"""Errors a user can act on: one line that names the flag, or the file and line, and exit code 2."""

import os
import sys
from collections.abc import Callable

EXIT_BAD_INPUT = 2


class UserError(Exception):
    """Bad input. The message is one line and names the culprit (a flag, or `file:line`)."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit code 2.

    Every rank meets the same bad input, so only rank 0 speaks.
    """
    try:
        main()
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        sys.exit(EXIT_BAD_INPUT)
