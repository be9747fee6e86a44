"""Where commands print tables for people and for pipes."""

from rich.console import Console

_WIDE = 240


def table_console() -> Console:
    """A console as wide as its terminal; what goes to a pipe, which has no width to fit into, gets 240 columns."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console
