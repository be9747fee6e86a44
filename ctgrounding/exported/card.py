"""The model card of an exported folder: what it is, what it expects, what it was trained on."""

import re
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from ctgrounding.encoders.readouts import DepthReadout
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.exported.folder import Description
from ctgrounding.exported.program import TowerAbout

_CARD = Template("""---
license: $licence_id
$licence_name
library_name: ctgrounding
tags: [computed-tomography, vision-language, medical-imaging]
---

# $title

A 3D CT vision-language model, trained with ctgrounding $version.
For research. It is no medical device, and no decision about a patient may rest on it.

## What it expects

* **HU.** Rescaled Hounsfield units in [-1024, 3071]; not windowed, not normalised. Outside of the scan: -1024.
* **Axes.** `D H W`: inferior to superior, posterior to anterior, left to right.
* **Voxels.** $spacing mm along `D H W`$crop. `ctgrounding.load` resamples files by itself.
* **Windows.** Made inside, one channel each: $windows.

## What it gives

A depth bin is $axial_mm mm. Embeddings of volumes, of unit length:

$embeddings

Texts have embeddings by the heads $text_heads.$locates

## How to use it

```python
import ctgrounding

model = ctgrounding.load("$folder")
vector = model.encode_scan("scan.nii.gz")
```

```python
import ctgrounding.hub  # or trust_remote_code=True below; ctgrounding must be installed either way
from transformers import AutoModel

model = AutoModel.from_pretrained("$folder")
found = model(image_hu=volumes, **model.tokenize(["A cyst in the left kidney."]))
found.image_embeds, found.text_embeds
```
$tower
## Training

Objectives: $objectives.

$data

## Licence

$licence
""")


def card(title: str, encoder: VisionLanguageEncoder, description: Description, tower: TowerAbout | None = None) -> str:
    """The card as Markdown.

    Args:
        title: Name of the model, and of its folder.
        encoder: The model.
        description: What its folder says of it.
        tower: The program beside it, if there is one.
    """
    is_known = re.fullmatch(r"[a-z][a-z0-9.-]*", description.licence) is not None
    windows = zip(encoder.image.windows.low.tolist(), encoder.image.windows.high.tolist(), strict=True)
    sizes = description.image_embeddings.items()
    embeddings = (f"* `{name}`: {width} numbers a {_unit(encoder, name)}" for name, width in sizes)
    return _CARD.substitute(
        title=title,
        folder=title,
        version=description.version,
        licence=description.licence,
        licence_id=description.licence if is_known else "other",
        licence_name="" if is_known else f'license_name: "{_quoted(description.licence)}"',
        spacing=" x ".join(f"{mm:g}" for mm in description.spacing_mm),
        crop=_crop(description.evaluation_crop),
        windows=", ".join(f"[{low:g}, {high:g}] HU" for low, high in windows),
        axial_mm=f"{description.axial_mm:g}",
        embeddings="\n".join(embeddings) or "* none",
        text_heads=", ".join(f"`{name}`" for name in encoder.heads.text_widths) or "none",
        locates=_locates(description.locating),
        tower="" if tower is None else _tower(tower),
        objectives=", ".join(f"`{name}`" for name in description.objectives) or "not recorded",
        data=_data(description.trained_on),
    ).replace("\n\nlibrary_name", "\nlibrary_name")


def _quoted(text: str) -> str:
    return text.replace("\\", " ").replace('"', "'").replace("\n", " ")


def _unit(encoder: VisionLanguageEncoder, name: str) -> str:
    return "depth bin" if isinstance(encoder.readouts[name.partition(".")[0]], DepthReadout) else "scan"


def _crop(crop: Mapping[str, Any] | None) -> str:
    if not crop or not crop.get("shape"):
        return ""
    extent = " x ".join("whole" if side is None else f"{side:g}" for side in crop["shape"])
    return f"; it was evaluated on the middle of a scan, {extent} {crop.get('unit', 'voxel')} along `D H W`"


def _locates(locating: Mapping[str, Any] | None) -> str:
    if locating is None:
        return " It was not trained to locate."
    return (
        f" It locates: the softmax over a scan's depth bins of `depth.{locating['image_head']}` times the text's "
        f"`{locating['text_head']}`, over a temperature of {locating['temperature']:g}, says at which depth a "
        "sentence's finding lies."
    )


def _tower(about: TowerAbout) -> str:
    shape = " x ".join(map(str, about.shape))
    scans = "any number of volumes" if about.scans == "any" else f"{about.scans} volume at a time"
    boxes = "any valid box" if about.valid_box == "any" else "volumes without padding"
    return f"\nThe image tower alone is a program, see `image_tower.json`: {scans} of {shape} voxels, {boxes}.\n"


def _data(data: Sequence[Mapping[str, Any]] | None) -> str:
    if data is None:
        return "Data: not recorded; the shards were not at hand when the model was exported."
    rows = [f"| {item['name']} | {item['patients']:,} | {item['scans']:,} |" for item in data]
    return "\n".join(["| data set | training patients | training scans |", "|---|---|---|", *rows])
