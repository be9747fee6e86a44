"""Text of the result page that several sections share."""

from collections.abc import Mapping
from html import escape
from typing import Any


def definitions(facts: Mapping[str, Any]) -> str:
    """Facts as a list of names and values."""
    shown = {name: ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else v for name, v in facts.items()}
    items = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in shown.items())
    return f"<dl>{items}</dl>" if items else ""


def protocol(section: Mapping[str, Any]) -> str:
    """How a section's numbers were measured, folded away."""
    facts = definitions(section.get("protocol", {}))
    return f"<details><summary>How this was measured</summary>{facts}</details>" if facts else ""


def shortened(text: str, most: int) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
