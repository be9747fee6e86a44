"""Report text to what it says: sections, image references, snippets, statements about organs, findings.

English and German, by rules over a readable vocabulary (``vocabulary/*.yaml``), without a network. The room knows
text only; where a slice lies in mm is the affair of :mod:`ctgrounding.ingest`.
"""

from ctgrounding.reports.reader import read
from ctgrounding.reports.references import find_references
from ctgrounding.reports.report import OrganStatement, Reference, Report, Snippet

__all__ = ["read", "find_references", "Report", "Reference", "Snippet", "OrganStatement"]
