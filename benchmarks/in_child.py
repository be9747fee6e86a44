"""Commands of ctgrounding in forked children, for scripts that run many of them."""

import multiprocessing
import os
import sys
from pathlib import Path

import ctgrounding.trainer_cli  # noqa: F401 (the libraries are loaded once, before children are forked)

ROOT = Path(__file__).parents[1]


def command(*words: str) -> None:
    """One command, run in the repository's root.

    Give ``phantom`` and ``ingest`` one worker: a child that made worker processes waits for them when it ends.

    Raises:
        SystemExit: If the command fails.
    """

    def child() -> None:
        from ctgrounding.cli import main

        os.chdir(ROOT)
        sys.exit(main(list(words)))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"ctgrounding {' '.join(words)} ended with exit code {process.exitcode}")
