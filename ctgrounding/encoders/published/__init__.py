"""Published weights of other projects, mapped onto our modules: every tensor is used or named."""

from ctgrounding.encoders.published.base import Checkpoint, Imported, TextFolder
from ctgrounding.encoders.published.ct_fm import import_ct_fm
from ctgrounding.encoders.published.hlip import import_hlip
from ctgrounding.encoders.published.spectre import import_radfinder, import_spectre

__all__ = [
    "Checkpoint",
    "Imported",
    "TextFolder",
    "import_ct_fm",
    "import_hlip",
    "import_radfinder",
    "import_spectre",
]
