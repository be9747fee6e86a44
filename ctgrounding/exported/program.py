"""The image tower as a program for machines without ctgrounding: ``torch.export``, or ONNX."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.errors import CheckpointError, ConfigError, MissingDependencyError
from ctgrounding.exported.image_tower import ImageTower

Kind = Literal["torch", "onnx"]
FILES: dict[Kind, str] = {"torch": "image_tower.pt2", "onnx": "image_tower.onnx"}
ABOUT = "image_tower.json"
TOLERANCE = 1e-5
_INPUTS = ("image_hu", "valid_box")


@dataclass(frozen=True)
class TowerAbout:
    """What a caller of the program must know; ``image_tower.json``.

    Attributes:
        shape: Voxels of a volume along ``D H W``; others are refused by the program.
        scans: Volumes of a call: ``any``, or a number.
        valid_box: ``any`` box inside the volume, or the ``whole`` volume alone.
        spacing_mm: Voxel size along ``D H W``.
        outputs: Name to shape, with ``None`` for the number of scans.
        depth_cell_vox: Voxels of a depth bin.
        depth_offset_vox: Voxel of the centre of the first one: bin ``i`` lies at ``origin_z_mm + spacing_mm[0] *
            (depth_offset_vox + i * depth_cell_vox)``.
    """

    shape: tuple[int, ...]
    scans: str | int
    valid_box: str
    spacing_mm: tuple[float, ...]
    outputs: dict[str, list[int | None]]
    depth_cell_vox: float
    depth_offset_vox: float


def write_program(tower: ImageTower, shape: Sequence[int], kind: Kind, folder: Path) -> TowerAbout:
    """Write the program and what a caller must know, and hold the program's numbers against the module's.

    Inputs are ``image_hu`` (float32) and ``valid_box`` (int64), outputs those of
    :class:`ctgrounding.exported.ImageTower`.

    Args:
        tower: The image tower.
        shape: Voxels of a volume along ``D H W``.
        kind: ``torch``, or ``onnx``, which needs the extra ``ctgrounding[onnx]``.
        folder: Where to write.

    Raises:
        ConfigError: If the shape is not three positive numbers, or the tower cannot be written as a program.
        MissingDependencyError: If ONNX is asked for without its packages.
        CheckpointError: If the program's numbers differ.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"A program needs the voxels of a volume along D, H, W, but shape is {list(shape)}.")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if kind == "onnx" and not find_spec(name)]
    if missing:
        raise MissingDependencyError(
            f"ONNX needs {', '.join(missing)}, not installed here. Install with: pip install 'ctgrounding[onnx]', or "
            "export the image tower as torch."
        )
    tower.eval()
    program, scans = _program(tower, shape)
    about = _about(tower, shape, scans)
    file = folder / FILES[kind]
    if kind == "torch":
        torch.export.save(program, file)
        _check_torch(tower, shape, file)
    else:
        _write_onnx(program, list(about.outputs), file)
        _check_onnx(tower, shape, file)
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n", encoding="utf-8")
    return about


def _program(tower: ImageTower, shape: Sequence[int]) -> tuple[ExportedProgram, str | int]:
    """The program for any number of scans, or for one at a time where the encoder needs a fixed number."""
    try:
        program = _traced(tower, _example(shape, 2), {0: Dim.AUTO})
        if _is_dynamic(program):
            return program, "any"
        return _traced(tower, _example(shape, 1), None), 1
    except (RuntimeError, TypeError, ValueError) as error:
        name = type(tower.image).__name__
        raise ConfigError(
            f"{name} cannot be written as a program: {_first_line(error)}. Its forward must not branch on numbers "
            "while ctgrounding.encoders.branches.is_exporting()."
        ) from error


def _traced(tower: ImageTower, example: tuple[Tensor, Tensor], batch: dict[int, Any] | None) -> ExportedProgram:
    shapes = None if batch is None else dict.fromkeys(_INPUTS, batch)
    with torch.no_grad(), _quiet_if_it_fails():
        program = torch.export.export(tower, example, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it names files of this machine
    program.example_inputs = None
    return program


@contextmanager
def _quiet_if_it_fails() -> Iterator[None]:
    """Without the whole graph that PyTorch prints when an export fails; the error names the reason."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    logs, said = [logging.getLogger(name) for name in names], StringIO()
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(said):
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
    sys.stderr.write(said.getvalue())


def _is_dynamic(program: ExportedProgram) -> bool:
    values = [node.meta["val"] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    return not any(is_concrete_int(value.shape[0]) for value in values)


def _example(shape: Sequence[int], scans: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    volumes = torch.randint(-1024, 1500, (scans, *shape), generator=draw).float()
    return volumes, torch.tensor([[0, side] for side in shape]).repeat(scans, 1, 1)


def _boxed(tower: ImageTower, example: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same volumes with the last voxel of each axis as padding, for encoders that take any box."""
    volumes, box = example
    if isinstance(tower.image, CroppedEncoder):
        return example
    return volumes, torch.where(box > 1, box - 1, box)


def _check_torch(tower: ImageTower, shape: Sequence[int], file: Path) -> None:
    inputs = _boxed(tower, _example(shape, 1, seed=1))
    with torch.no_grad():
        found = torch.export.load(file).module()(*inputs)
        _compare(found, tower(*inputs), file)


def _write_onnx(program: ExportedProgram, outputs: list[str], file: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's exporter calls what PyTorch deprecates
            torch.onnx.export(
                program, f=file, input_names=list(_INPUTS), output_names=outputs, external_data=False, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"ONNX cannot hold this image tower: {_first_line(error.__cause__ or error)}. Export it as torch."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".: ")


def _check_onnx(tower: ImageTower, shape: Sequence[int], file: Path) -> None:
    from onnxruntime import InferenceSession

    inputs = _boxed(tower, _example(shape, 1, seed=1))
    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = dict(zip(_INPUTS, (value.numpy() for value in inputs), strict=True))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, map(torch.from_numpy, session.run(None, given)), strict=True))
    with torch.no_grad():
        _compare(found, tower(*inputs), file)


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], file: Path) -> None:
    for name, value in expected.items():
        error = float((found[name].double() - value.double()).abs().max())
        if not error <= TOLERANCE:
            raise CheckpointError(f"{file.name} gives other numbers than the model: '{name}' differs by {error:.1e}.")


def _about(tower: ImageTower, shape: Sequence[int], scans: str | int) -> TowerAbout:
    with torch.no_grad():
        found = tower(*_example(shape, 1))
    image = tower.image
    return TowerAbout(
        shape=tuple(shape),
        scans=scans,
        valid_box="whole" if isinstance(image, CroppedEncoder) else "any",
        spacing_mm=image.spacing_mm,
        outputs={name: [None, *value.shape[1:]] for name, value in found.items()},
        depth_cell_vox=image.cell_vox[0],
        depth_offset_vox=image.offset_vox[0],
    )
