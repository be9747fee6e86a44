"""What is wrong with a file that PyTorch cannot read as a checkpoint, in one sentence."""

import pickle
import struct
from pathlib import Path

from ctgrounding.errors import CheckpointError

UNREADABLE = (
    *(pickle.PickleError, RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, MemoryError, struct.error),
)
"""What ``torch.load`` throws at files that are damaged, of another kind, or hold code, with ``weights_only``."""

_BEGINNINGS = (b"PK\x03\x04", b"\x80")
"""First bytes of a checkpoint: a zip archive, or a pickle as before PyTorch 1.6."""

_SHOWN = 24


def unreadable(path: str | Path, error: Exception, advice: str) -> CheckpointError:
    """The error to raise for what ``torch.load(path, weights_only=True)`` threw.

    Args:
        path: The file.
        error: One of :data:`UNREADABLE`.
        advice: What to do, as a sentence.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "page.pt"
        >>> path.write_text("<html>Not found</html>")
        22
        >>> str(unreadable(path, ValueError(), "Download it again.")).partition(": ")[2]
        "it begins with '<html>Not found</html>'. Download it again."
    """
    try:
        with Path(path).open("rb") as stream:
            first = stream.read(_SHOWN)
    except OSError as reason:
        return CheckpointError(f"{path} cannot be read ({type(reason).__name__}). {advice}")
    if first and not first.startswith(_BEGINNINGS):
        shown = first.decode("ascii", errors="replace").replace("\n", " ").replace("\ufffd", "?")
        shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
        return CheckpointError(f"{path} is no checkpoint of PyTorch: it begins with '{shown}'. {advice}")
    if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
        return CheckpointError(
            f"{path} holds objects beside tensors, which are code and are not loaded. "
            "Ask its authors for safetensors, or save its state dict alone where you trust it."
        )
    return CheckpointError(f"{path} cannot be read as a checkpoint ({type(error).__name__}). {advice}")
