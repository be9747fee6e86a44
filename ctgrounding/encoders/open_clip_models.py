"""Models of open_clip by name, with weights that are fetched or already there."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from ctgrounding.errors import ConfigError

_ELSEWHERE = ("local-dir:", "hf-hub:")
"""How names begin whose folder holds the settings and the weights."""


def open_clip_model(name: str, pretrained: bool | str, image_shape: Sequence[int] | None = None) -> Any:  # noqa: ANN401
    """An open_clip model whose text tower is a module of its own.

    No pickle is executed: open_clip reads weights by ``safetensors`` or ``torch.load(weights_only=True)``.

    Args:
        name: Name in open_clip, ``local-dir:FOLDER`` with an ``open_clip_config.json`` and weights, or
            ``hf-hub:OWNER/NAME``, which needs a network once.
        pretrained: Tag of published weights, or a file of weights; false for random ones. A folder's own weights are
            read unless it is false.
        image_shape: Height and width of images; null for the model's own.

    Raises:
        ConfigError: If there is no such model, or its weights cannot be had.
    """
    import open_clip

    brings_weights = name.startswith(_ELSEWHERE)
    if not brings_weights and name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model '{name}', but has such as {', '.join(open_clip.list_models()[:4])}.")
    if pretrained is True and not brings_weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:4])
        raise ConfigError(f"open_clip's weights are named by a tag: set pretrained to one of {tags or 'none it has'}.")
    if isinstance(pretrained, str) and brings_weights:
        raise ConfigError(f"'{name}' brings its weights, but pretrained is '{pretrained}'. Set pretrained to true.")
    with weights_of(f"open_clip's '{name}'"), without_root_handler():
        return open_clip.create_model(
            name,
            pretrained=pretrained if isinstance(pretrained, str) else None,
            load_weights=bool(pretrained),
            require_pretrained=bool(pretrained),
            pretrained_text=False,
            force_custom_text=True,
            force_image_size=tuple(image_shape) if image_shape else None,
        )


@contextmanager
def weights_of(model: str) -> Iterator[None]:
    """Say in one sentence that the weights of a model cannot be had.

    Args:
        model: What to call it.

    Raises:
        ConfigError: If the block fails for want of them.
    """
    try:
        yield
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError, AssertionError, KeyError, UnpicklingError) as error:
        raise ConfigError(
            f"The weights of {model} cannot be had ({type(error).__name__}: {error}). Fetch them where there is a "
            "network, name others, or set pretrained to false."
        ) from error


@contextmanager
def without_root_handler() -> Iterator[None]:
    """Let open_clip log without the handler that Python would give the root logger for it, and which would stay."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)
