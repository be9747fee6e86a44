"""The tiny run with an adapted image tower and frozen parts; importable by other processes."""

from contextlib import contextmanager

import exact_work
import tiny_run

CHANGES = {
    "image_lora": {"rank": 2, "alpha": 8.0, "dropout": 0.0},
    "freeze": [r"encoder\.text\.tower\.transformer", r"encoder\.heads\.text_heads\.organ", r".*\.log_scale"],
}


@contextmanager
def adapted():
    """Within it the tiny run has these changes."""
    plain = tiny_run.config

    def config(folder):
        content = plain(folder)
        content["model"] |= CHANGES
        return content

    tiny_run.config = config
    try:
        yield
    finally:
        tiny_run.config = plain


def make_task(folder):
    """The task of the exact steps with these changes."""
    with adapted():
        return exact_work.make_task(folder)


def fit(folder, absent, precision, steps, parts=None):
    """The fit of the exact steps with these changes."""
    with adapted():
        return exact_work.fit(folder, absent, precision, steps, parts)
