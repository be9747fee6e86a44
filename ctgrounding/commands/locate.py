"""``ctgrounding locate``: at which depth of a scan a sentence's finding lies, with a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from rich.console import Console
from rich.markup import escape

from ctgrounding.errors import ConfigError, ShardError
from ctgrounding.evaluation.examples import coronal_view
from ctgrounding.evaluation.pictures import depth_picture, png
from ctgrounding.geometry import Grid
from ctgrounding.model import Location, Model, load


@dataclass(frozen=True)
class _Opened:
    name: str
    image_hu: Int16[np.ndarray, "D H W"]
    grid: Grid
    valid_box: tuple[tuple[int, int], ...]
    found: Location


def locate(
    text: str,
    *,
    model: Path,
    scan: str,
    output: Path | None = None,
    shards: list[str] | None = None,
    series: int | None = None,
    device: str | None = None,
) -> Location:
    """Find the depth of a scan that a sentence speaks of, print it and draw it.

    Args:
        text: A finding in words, for example "a cyst in the left kidney".
        model: Run folder of ``ctgrounding fit``, or a checkpoint.
        scan: A NIfTI file, a folder of DICOM slices, or the id of a scan in shards.
        output: PNG to write; beside the current folder's files as ``locate-<scan>.png`` if not given.
        shards: Shard files or folders to look an id up in; those of the run if not given.
        series: Series number, where a DICOM folder holds several.
        device: Where to compute, such as cuda:1; a GPU if there is one.

    Returns:
        Depth, slice, and probability over depth.
    """
    trained = load(model).to(device)
    opened = (
        _from_file(trained, scan, text, series) if Path(scan).exists() else _from_shards(trained, scan, text, shards)
    )
    found = opened.found
    picture = output or Path(f"locate-{opened.name}.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    box = [list(bounds) for bounds in opened.valid_box]
    view = coronal_view(opened.image_hu, box, list(opened.grid.spacing_mm), opened.grid.origin_mm[2])
    figure = depth_picture(view, found.depths_mm, found.probability, found.depth_mm, text=text)
    picture.write_bytes(png(figure))
    _say(text, found, picture)
    return found


def _from_file(model: Model, path: str, text: str, series: int | None) -> _Opened:
    opened = model.read(path, series)
    name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
    return _Opened(name, opened.image_hu, opened.grid, opened.valid_box, model.locate(opened, text))


def _from_shards(model: Model, scan_id: str, text: str, shards: list[str] | None) -> _Opened:
    from ctgrounding.data.shards import Shard, find_shards

    folders = shards or model.shard_paths
    if not folders:
        raise ConfigError(f"'{scan_id}' is no file, and an exported model names no shards. Name some with --shards.")
    try:
        files = find_shards(folders)
    except ShardError as error:
        raise ConfigError(
            f"'{scan_id}' is no file or folder here, and as the id of a scan it cannot be looked up: {error} "
            "Name the shards with --shards if they lie elsewhere."
        ) from error
    for path in files:
        shard = Shard(path)
        for row, record in enumerate(shard.records):
            if record.scan_id == scan_id:
                image, grid = shard.read_image(row), Grid(record.shape, record.spacing_mm, record.origin_mm)
                found = model.locate_in(image, grid, record.valid_box, text)
                return _Opened(scan_id, image, grid, record.valid_box, found)
    raise ConfigError(f"'{scan_id}' is neither a file nor the id of a scan in {', '.join(map(str, folders))}.")


def _say(text: str, found: Location, picture: Path) -> None:
    console = Console(highlight=False)
    share = found.probability.max()
    where = f"[bold]{found.depth_mm:.1f} mm[/bold] (world z), probability {share:.2f}"
    console.print(f'"{escape(text)}" lies at depth {where}', soft_wrap=True)
    if found.slice is not None:
        image = "" if found.slice.image is None else f", image {found.slice.image}"
        console.print(f"slice {found.slice.index} of the file{image}, at {found.slice.depth_mm:.1f} mm")
    console.print(f"picture: {picture}", markup=False, soft_wrap=True)
