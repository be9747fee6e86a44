"""``ctgrounding configs list | copy``: run configs, overlays and dataset cards that come with the package."""

import shutil
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ctgrounding.errors import ConfigError

FOLDERS = ("configs", "data_manifests")


def root() -> Traversable:
    """Folder that holds ``configs`` and ``data_manifests``: the checkout, or the installed package's own copy."""
    checkout = files("ctgrounding").joinpath("..")
    return checkout if checkout.joinpath("configs", "pretrain").is_dir() else files("ctgrounding").joinpath("_packaged")


def paths() -> list[str]:
    """Every packaged YAML file, relative to :func:`root`, in order."""
    with as_file(root()) as folder:
        found = [path.relative_to(folder) for name in FOLDERS for path in sorted((folder / name).rglob("*.yaml"))]
    return [path.as_posix() for path in found]


def find(name: str) -> Path:
    """A file by path, or a packaged one by its path or file name.

    Raises:
        ConfigError: If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    for path in paths():
        if name in (path, Path(path).name, Path(path).stem):
            with as_file(root()) as folder:
                return folder / path
    raise ConfigError(f"There is no file '{name}' and no packaged one of that name. See 'ctgrounding configs list'.")


def list_configs() -> None:
    """List run configs, overlays and dataset cards with what each is for."""
    table = Table("file", "what it is", box=None)
    for path in paths():
        first = find(path).read_text(encoding="utf-8").splitlines()[0]
        table.add_row(path, first.removeprefix("#").strip())
    Console().print(table)


def copy_configs(output: Path = Path("configs"), names: list[str] | None = None) -> list[Path]:
    """Copy packaged files to a folder of your own, where you edit them.

    Args:
        output: Folder to copy into; made if needed. Existing files are never overwritten.
        names: File names to copy; all if not given.

    Returns:
        The files written.

    Raises:
        ConfigError: If a name is not packaged, or a file is already there.
    """
    chosen = [find(name) for name in names] if names else [find(path) for path in paths()]
    output.mkdir(parents=True, exist_ok=True)
    taken = [output / path.name for path in chosen if (output / path.name).exists()]
    if taken:
        raise ConfigError(f"{taken[0]} is already there. Remove it or choose another --output.")
    written = [Path(shutil.copyfile(path, output / path.name)) for path in chosen]
    Console().print(f"Copied {len(written)} files to {output}.")
    return written


COMMANDS = {"list": list_configs, "copy": copy_configs}
