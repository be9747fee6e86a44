"""What can go wrong, by name.

Every message is one or two sentences: what is wrong, the value found, where, and what to do.
The command line prints the message alone and exits with code 2.
"""


class CTGroundingError(Exception):
    """Base of every error that ctgrounding raises on purpose."""


class ConfigError(CTGroundingError, ValueError):
    """A run configuration names something that does not exist or does not fit the rest."""


class CardError(CTGroundingError, ValueError):
    """A dataset card does not fit the files that it describes."""


class ScanError(CTGroundingError, ValueError):
    """A scan, a mask or its metadata cannot be used.

    Args:
        message: What is wrong.
        kind: Its name among the audit's verdicts.
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class ReportError(CTGroundingError, ValueError):
    """A report or a piece of its text cannot be used."""


class ShardError(CTGroundingError, OSError):
    """A shard is damaged, incomplete or of another format."""


class BatchError(CTGroundingError, ValueError):
    """A batch lacks a field that something needs, or holds values that cannot be trained on."""


class GeometryError(CTGroundingError, ValueError):
    """An affine, a spacing or a grid is degenerate or does not match another."""


class CheckpointError(CTGroundingError, ValueError):
    """A checkpoint does not fit the model that is to load it."""


class MissingDependencyError(CTGroundingError, ImportError):
    """An optional library is needed for what was asked."""
