"""``ctgrounding compare``: is run B better than run A, and where?"""

from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from ctgrounding.commands.terminal import table_console
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import compare as pairs
from ctgrounding.evaluation.compare import Comparison, Difference


def compare(run_a: Path, run_b: Path, alpha: float = 0.05) -> Comparison:
    """Compare two tested runs on the cases that both evaluated, patient by patient.

    Args:
        run_a: Run folder that ``ctgrounding test`` wrote results to.
        run_b: The other one.
        alpha: Chance of a false alarm that a verdict accepts, after Holm's correction for many numbers.

    Raises:
        ConfigError: If ``alpha`` is no chance, or the runs cannot be compared.

    Returns:
        Differences with intervals and corrected p-values.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha is {alpha}, but a chance lies between 0 and 1. Use 0.05, for example.")
    found = pairs.compare(run_a, run_b)
    console = table_console()
    table = Table(
        Column("number", overflow="fold"), "cases", "A", "B", "B - A", "95 % interval", "p, corrected", "B is", box=None
    )
    for item in found.differences:
        table.add_row(*_row(item, alpha))
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"{found.protocol}\n{found.answer(alpha)}", markup=False)
    return found


def _row(item: Difference, alpha: float) -> tuple[str, ...]:
    colour = {"better": "green", "worse": "red"}.get(item.verdict(alpha), "dim")
    name = f"{item.name} {item.column}".strip()
    values = (f"{item.first:.3g}", f"{item.second:.3g}", f"{item.difference:+.3g}")
    return (
        escape(name),
        str(item.cases),
        *values,
        f"{item.low:+.3g} to {item.high:+.3g}",
        f"{item.p_corrected:.3g}",
        f"[{colour}]{item.verdict(alpha)}[/{colour}]",
    )
