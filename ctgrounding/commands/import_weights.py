"""``ctgrounding import-weights``: a published checkpoint that the user has becomes weights of our modules."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctgrounding.encoders.checkpoint_files import UNREADABLE, unreadable
from ctgrounding.encoders.published import (
    Checkpoint,
    Imported,
    TextFolder,
    import_ct_fm,
    import_hlip,
    import_radfinder,
    import_spectre,
)
from ctgrounding.errors import CheckpointError, ConfigError

Source = Literal["radfinder", "spectre", "hlip", "ct_fm"]

SPECTRE_FILES = {
    r"spectre_backbone.*\.pt": "backbone_image.",
    r"spectre_combiner.*\.pt": "feature_comb_image.",
    r"SigLIP_projection_head_image\.pt": "projection_image.",
    r"SigLIP_projection_head_text\.pt": "projection_text.",
    r"spectre_qwen3.*\.pt": "backbone_text.",
}
"""SPECTRE's files have no prefixes; RadFinder's tell their parts apart."""

CONTAINERS = ("state_dict", "model")
"""Keys under which training checkpoints keep the tensors."""

PREFIXES = {"radfinder": ("model.",), "spectre": (), "hlip": ("module.",), "ct_fm": ()}


def import_weights(
    *,
    source: Source,
    checkpoint: Path,
    output: Path,
    depth_branch: Literal["trained", "zero_shot"] = "trained",
    halve_depth: bool = False,
    lora_folded: bool | None = None,
) -> None:
    """Map published weights onto our modules; every tensor is used or named, and nothing in a pickle is run.

    Args:
        source: Whose weights they are; ``--from`` is the same option.
        checkpoint: File, or folder of SPECTRE's files or of safetensors with an index.
        output: Folder to write: ``weights.safetensors``, ``model.yaml``, ``import.json``, and ``text/`` where the
            checkpoint has a text tower.
        depth_branch: For radfinder and spectre: the trained depth branch, or the one for models that never
            learned to locate.
        halve_depth: For spectre: patches of half the depth, for slices of 3 mm instead of 1.5 mm.
        lora_folded: For radfinder and spectre: whether the text weights already contain their adapters; by
            default true for radfinder and false for spectre.
    """
    _refuse_unused(source, depth_branch, halve_depth, lora_folded)
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty. Name another folder, so that nothing is written over.")
    console = Console()
    with console.status(f"Reading {checkpoint}"):
        tensors, files = _read(source, checkpoint)
    lora: dict[str, Any] = {} if lora_folded is None else {"lora_folded": lora_folded}
    imports: dict[str, Callable[[Checkpoint], Imported]] = {
        "radfinder": partial(import_radfinder, depth_branch=depth_branch, **lora),
        "spectre": partial(import_spectre, depth_branch=depth_branch, halve_depth=halve_depth, **lora),
        "hlip": import_hlip,
        "ct_fm": import_ct_fm,
    }
    found = imports[source](Checkpoint(tensors))
    with console.status(f"Writing {output}"):
        _write(found, source, files, len(tensors), output)
    _say(console, found, len(tensors), output)


def _refuse_unused(source: str, depth_branch: str, halve_depth: bool, lora_folded: bool | None) -> None:
    given = {
        "--halve_depth": (halve_depth, {"spectre"}),
        "--depth_branch": (depth_branch != "trained", {"radfinder", "spectre"}),
        "--lora_folded": (lora_folded is not None, {"radfinder", "spectre"}),
    }
    for option, (is_given, sources) in given.items():
        if is_given and source not in sources:
            raise ConfigError(f"{option} is for {' and '.join(sorted(sources))}, not for {source}. Remove it.")


def _read(source: str, checkpoint: Path) -> tuple[dict[str, Tensor], list[Path]]:
    if not checkpoint.exists():
        raise CheckpointError(f"There is no checkpoint {checkpoint}. Download it from its authors and name the file.")
    if source == "spectre":
        return _read_spectre(checkpoint)
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{checkpoint} holds no .safetensors file. Name the checkpoint file itself.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _tensors(file)
    for prefix in PREFIXES[source]:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, files


def _read_spectre(checkpoint: Path) -> tuple[dict[str, Tensor], list[Path]]:
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.pt"))
    tensors: dict[str, Tensor] = {}
    used: dict[str, Path] = {}
    for file in files:
        prefix = next((prefix for pattern, prefix in SPECTRE_FILES.items() if re.fullmatch(pattern, file.name)), None)
        if prefix is None:
            raise CheckpointError(
                f"{file.name} is none of SPECTRE's files. Keep their published names; a folder may hold only those."
            )
        if prefix in used:
            raise CheckpointError(f"{used[prefix].name} and {file.name} are the same part. Keep one of them.")
        used[prefix] = file
        tensors |= {prefix + name: value for name, value in _tensors(file).items()}
    if "backbone_image." not in used:
        raise CheckpointError(f"{checkpoint} has no spectre_backbone_*.pt, without which there is no model.")
    return tensors, list(used.values())


def _tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; of a pickle only what needs no code to be run."""
    again = "Download it again."
    try:
        held: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read as a checkpoint (SafetensorError). {again}") from error
    except UNREADABLE as error:
        raise unreadable(file, error, again) from error
    for key in CONTAINERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()
    ):
        raise CheckpointError(f"{file} is no state dict: it holds other things than tensors by name.")
    return dict(held)


def _write(found: Imported, source: str, files: Iterable[Path], count: int, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    about = {
        "source": source,
        "licence": found.licence,
        "files": {file.name: _digest(file) for file in files},
        "tensors": count,
        "left_out": found.left_out,
        "notes": found.notes,
    }
    metadata = {"source": source, "licence": found.licence}
    weights = {name: value.contiguous() for name, value in found.weights.items()}
    save_file(weights, output / "weights.safetensors", metadata=metadata)
    (output / "import.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    model = dict(found.model) | {"initial_weights": str(output / "weights.safetensors")}
    if found.text is not None:
        _write_text(found.text, output / "text", metadata)
        model["text"] = {
            "class_path": "ctgrounding.encoders.text.transformers.TransformersText",
            "init_args": {"model": str(output / "text"), "pooling": found.text.pooling},
        }
    header = f"# {source}: {found.licence}\n# Sections of a run config that weights.safetensors fits.\n"
    (output / "model.yaml").write_text(header + yaml.safe_dump({"model": model}, sort_keys=False), encoding="utf-8")


def _write_text(text: TextFolder, folder: Path, metadata: dict[str, str]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(text.config, indent=2), encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in text.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata=metadata | {"format": "pt"})


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(console: Console, found: Imported, count: int, output: Path) -> None:
    used = count - len(found.left_out)
    console.print(f"{count} tensors: {used} used, {len(found.left_out)} left out. Licence: {found.licence}.")
    for reason, number in Counter(found.left_out.values()).items():
        console.print(f"  left out {number}: {reason}")
    for note in found.notes:
        console.print(f"  {note}")
    console.print(f"Wrote {output}; model.yaml says how to use it.")
    if found.text is not None:
        console.print(f"Put the tokenizer files of {found.text.tokenizer} beside {output / 'text' / 'config.json'}.")
