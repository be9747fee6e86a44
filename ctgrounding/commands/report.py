"""``ctgrounding report``: the result page of a run, written again from its results."""

from pathlib import Path

from rich.console import Console

from ctgrounding.evaluation.page import write_page


def report(run: Path) -> Path:
    """Write ``report.html`` of a run again, from the results that ``ctgrounding test`` left.

    Args:
        run: Run folder.

    Returns:
        The page.
    """
    page = write_page(run)
    Console(highlight=False).print(f"wrote {page}", markup=False, soft_wrap=True)
    return page
