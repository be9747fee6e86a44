"""``ctgrounding export``: a trained model as a folder for others, and its image tower as a program."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open

from ctgrounding import __version__
from ctgrounding.errors import CheckpointError, ConfigError, CTGroundingError
from ctgrounding.exported import Description, ImageTower, tower_outputs, write_folder
from ctgrounding.exported.card import card
from ctgrounding.exported.program import TowerAbout, write_program
from ctgrounding.model import PARTS, Model, load

NOT_STATED = "not stated"


def export(
    *,
    model: Path,
    output: Path,
    licence: str | None = None,
    image_tower: Literal["none", "torch", "onnx"] = "none",
    shape: list[int] | None = None,
) -> None:
    """Write a trained model as a folder that ``transformers`` and ``ctgrounding.load`` read, and check it.

    Args:
        model: Run folder of ``ctgrounding fit``, a checkpoint, or an exported folder.
        output: Folder to write; made if need be, must be empty.
        licence: Licence of the weights, an identifier such as ``cc-by-nc-sa-4.0`` or a sentence; by default that of
            the weights that training began from, where they state one.
        image_tower: Also write the image tower as a program, by ``torch.export`` or as ONNX.
        shape: Voxels along D, H, W of the program's volumes; by default those of the run's evaluation crop.
    """
    if shape is not None and image_tower == "none":
        raise ConfigError("--shape is the size of the image tower's volumes. Add --image_tower torch, or remove it.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} is not an empty folder. Name another one, so that nothing is written over.")
    console = Console(highlight=False)
    with console.status(f"Reading {model}"):
        trained = load(model)
    description = _description(trained, licence)
    with _made_whole(output) as folder:
        with console.status("Writing weights"):
            write_folder(trained.encoder, description, folder)
            _check(trained, folder)
        about = None
        if image_tower != "none":
            tower = ImageTower(trained.encoder, _uses(trained))
            with console.status("Writing the image tower, which may take minutes"):
                about = write_program(tower, shape or _crop_vox(trained), image_tower, folder)
        text = card(output.name, trained.encoder, description, about)
        (folder / "README.md").write_text(text, encoding="utf-8")
    _say(console, output, description, about)


def _uses(trained: Model) -> list[tuple[str, str]]:
    use = trained.locating
    locating = None if use is None else {"image_head": use.image_head}
    return tower_outputs(trained.encoder, trained.config["model"]["heads"]["image"], locating)


def _description(trained: Model, licence: str | None) -> Description:
    earlier: Description | None = trained.config.get("exported")
    if earlier is not None:
        return replace(earlier, licence=licence or earlier.licence)
    use, widths = trained.locating, trained.encoder.heads.image_widths
    sections = trained.config["model"]
    made = (sections.get("objectives") or {}).values()
    return Description(
        encoder={name: sections[name] for name in PARTS if name in sections},
        spacing_mm=trained.spacing_mm,
        axial_mm=trained.encoder.image.axial_mm,
        evaluation_crop=trained.config["data"].get("evaluation_crop"),
        locating=None if use is None else vars(use),
        image_embeddings={f"{readout}.{head}": widths[head] for readout, head in _uses(trained)},
        objectives=[item["class_path"].rpartition(".")[2] for item in made if item],
        trained_on=_trained_on(trained),
        licence=licence or _inherited_licence(sections.get("initial_weights")),
        version=__version__,
    )


def _inherited_licence(begun: str | None) -> str:
    """What the weights that training began from say of their licence."""
    if not begun or not Path(begun).is_file():
        return NOT_STATED
    try:
        with safe_open(begun, "pt") as file:
            return str((file.metadata() or {}).get("licence", NOT_STATED))
    except (SafetensorError, OSError):
        return NOT_STATED


@contextmanager
def _made_whole(output: Path) -> Iterator[Path]:
    """A folder beside the final one that takes its name when everything in it is written, and else is removed."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(trained: Model, folder: Path) -> None:
    """Read the folder back and hold every weight and a text's vector against the model."""
    try:
        again = load(folder)
    except CTGroundingError as error:
        raise CheckpointError(f"The model cannot be read back, so nothing was written. {error}") from error
    written = again.encoder.state_dict()
    for name, value in trained.encoder.state_dict().items():
        if not torch.equal(written[name].cpu(), value.cpu()):
            raise CheckpointError(f"'{name}' is not what was written, so the folder was removed. Check the disk.")
    for head in trained.encoder.heads.text_widths:
        sentence = "A cyst in the left kidney."
        if not torch.allclose(again.encode_text(sentence, head), trained.encode_text(sentence, head), atol=1e-5):
            raise CheckpointError(
                f"The text head '{head}' gives other vectors from the folder. A part of the text encoder is neither in "
                "its weights nor in its configuration."
            )


def _crop_vox(trained: Model) -> Sequence[int]:
    extent = [side for side in trained.crop.extent_vox(trained.spacing_mm) if side is not None]
    if len(extent) < 3:
        raise ConfigError(
            "This model sees whole scans, so the image tower's volumes have no size of their own. Give one: "
            "--shape '[D, H, W]' in voxels."
        )
    return extent


def _trained_on(trained: Model) -> list[dict[str, str | int]] | None:
    """Counts of patients and scans, never who they are; None where the shards are not at hand."""
    from ctgrounding.data.index import load_index

    if not trained.shard_paths or not all(Path(path).exists() for path in trained.shard_paths):
        return None
    split = trained.config["data"].get("train_split", "train")
    columns = load_index(trained.shard_paths).of_split("all" if split == "all" else "train").columns
    scans = Counter(columns["dataset"])
    patients = Counter(name for name, _ in set(zip(columns["dataset"], columns["patient_id"], strict=True)))
    return [{"name": name, "patients": patients[name], "scans": scans[name]} for name in sorted(scans)]


def _say(console: Console, output: Path, description: Description, about: TowerAbout | None) -> None:
    licence = description.licence
    console.print(
        f"Wrote {output}: model, model card, and how transformers reads it. Licence: {licence}.",
        markup=False,
        soft_wrap=True,
    )
    if licence == NOT_STATED:
        console.print("  Nobody may use weights without a licence: give one with --licence.")
    if about is not None:
        scans = "any number of scans" if about.scans == "any" else f"{about.scans} scan at a time"
        boxes = "any valid box" if about.valid_box == "any" else "volumes without padding"
        console.print(f"  Image tower: {scans}, {' x '.join(map(str, about.shape))} voxels, {boxes}.")
    console.print("  Read README.md before you hand it on.")
