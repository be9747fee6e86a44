"""Hospital files to shards: cards, readers, audit, resampling, snippet resolution, pipeline.

Names are imported when they are first used, so that reading one scan does not load what writes shards.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctgrounding.ingest.card_files import load_card
    from ctgrounding.ingest.cards import Card
    from ctgrounding.ingest.inspection import inspect
    from ctgrounding.ingest.mining import mine
    from ctgrounding.ingest.pipeline import IngestSummary, ingest
    from ctgrounding.ingest.scan import OriginalSlice, Scan, read_scan

__all__ = ["Card", "IngestSummary", "OriginalSlice", "Scan", "ingest", "inspect", "load_card", "mine", "read_scan"]

_HOMES = {
    "Card": "cards",
    "IngestSummary": "pipeline",
    "OriginalSlice": "scan",
    "Scan": "scan",
    "ingest": "pipeline",
    "inspect": "inspection",
    "load_card": "card_files",
    "mine": "mining",
    "read_scan": "scan",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
