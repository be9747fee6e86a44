"""``ctgrounding search``: the scans of a run that a sentence fits best."""

from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from ctgrounding.commands.terminal import table_console
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.saved import SavedEmbeddings
from ctgrounding.model import load


def search(text: str, *, model: Path, embeddings: Path | None = None, head: str = "main", top: int = 10) -> list[str]:
    """Rank the scans that ``ctgrounding predict`` embedded by a sentence.

    Args:
        text: What to look for, for example "emphysema of both upper lobes".
        model: Run folder of ``ctgrounding fit``, or a checkpoint.
        embeddings: Folder that ``ctgrounding predict`` wrote; ``embeddings`` in the run folder if not given, of a
            checkpoint in that of its run.
        head: Image and text head to compare in.
        top: How many scans to show.

    Raises:
        ConfigError: If ``top`` is not positive, or the embeddings are of another model.

    Returns:
        Ids of the scans, best first.
    """
    if top < 1:
        raise ConfigError(f"--top is {top}, which shows no scan. Give a number from 1 on.")
    saved = SavedEmbeddings(embeddings or _run_folder(model) / "embeddings")
    vectors = {scan: saved.vector(scan, "global", head) for scan in saved.scans}
    trained = load(model)
    saved.check_made_by(trained.encode_text)
    ranked = trained.search(vectors, text, head, top)
    table = Table("rank", Column("scan", overflow="fold"), "cosine", box=None)
    for rank, (scan, cosine) in enumerate(ranked, start=1):
        table.add_row(str(rank), escape(scan), f"{cosine:.3f}")
    table_console().print(table)
    return [scan for scan, _ in ranked]


def _run_folder(model: Path) -> Path:
    in_run = model.is_file() and model.parent.name == "checkpoints"
    return model.parent.parent if in_run else model
