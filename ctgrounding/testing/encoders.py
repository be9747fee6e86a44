"""A contract suite for image encoders: does a plug-in keep what readouts and objectives rely on?"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.testing.elsewhere import elsewhere
from ctgrounding.testing.encoder_grid import misplaced_cells
from ctgrounding.testing.encoder_readouts import readout_differences
from ctgrounding.testing.encoder_subject import EncoderSubject, boxes, encode, texture, whole_box
from ctgrounding.types import DenseFeatures

SAME_TOLERANCE = 1e-5
BF16_TOLERANCE = 5e-2


def check_image_encoder(make: Callable[[], ImageEncoder], cells: Sequence[int] = (5, 4, 4)) -> None:
    """Check an image encoder against its contract; every breach found is in the message.

    What is checked, on volumes of a few cells on the CPU: the map lies where ``cell_vox`` and ``offset_vox`` say,
    to 0.001 mm, by moving a bright slab through the volume; valid cells are those that hold real voxels;
    padding, and what stands in it, changes nothing; a batch equals its scans one by one; volumes are left
    as they are; readouts of the features equal slow loops over cells and voxels, whatever stands in cells that are
    not valid; other sizes work; gradients are finite and reach every trainable parameter; a state dict carries
    everything; bfloat16 autocast stays near float32; there are no batch statistics; and no tensor stays behind when
    the encoder moves to another device, by :func:`ctgrounding.testing.elsewhere.elsewhere`.

    Where the slab is seen from: an encoder whose cells have bounded fields of view of their own is measured by a
    field's middle (its norms taken out), a map of single voxels by the lag at which all cells together respond
    most, any other by the interval in which a cell responds most. A deep convolutional encoder needs so many
    ``cells`` that its field of view fits in.

    Args:
        make: Makes the encoder, with fresh random weights at each call.
        cells: Size of the test volumes in cells along ``D H W``.

    Raises:
        AssertionError: If the contract is broken.

    Examples:
        >>> from ctgrounding.encoders.image.conv import PatchConv
        >>> check_image_encoder(lambda: PatchConv(patch=(2, 4, 4), width=32, heads=4))
    """
    torch.manual_seed(0)
    encoder = make().eval()
    depth, row, column = (round(count * vox) for count, vox in zip(cells, encoder.cell_vox, strict=True))
    subject = EncoderSubject(encoder, make, (depth, row, column))
    breaches: list[str] = []
    failure: Exception | None = None
    for check in _CHECKS:
        name = check.__name__.removeprefix("_check_")
        try:
            breaches += [f"{name}: {said}" for said in check(subject)]
        except Exception as error:  # whatever an author's code may raise is a breach, and the other checks go on
            breaches.append(f"{name}: the encoder raised {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            failure = failure or error
    if breaches:
        said = f"{type(encoder).__name__} breaks the contract of image encoders:\n" + "\n".join(breaches)
        raise AssertionError(said) from failure


def _check_grid(subject: EncoderSubject) -> Iterator[str]:
    encoder = subject.encoder
    dense = encode(encoder, texture(subject.shape))
    declared = (encoder.cell_vox, encoder.offset_vox, encoder.grid(subject.shape))
    shape = tuple(dense.map.shape)
    if (dense.cell_vox, dense.offset_vox, shape[2:]) != declared:
        yield f"declared {declared}, but the features say {(dense.cell_vox, dense.offset_vox, shape[2:])}."
        return
    if shape[1] != encoder.width or dense.valid.shape != dense.map[:, 0].shape:
        yield f"width is {encoder.width}, but map and valid have shapes {shape} and {tuple(dense.valid.shape)}."
        return
    if encoder.has_summary != (dense.summary is not None):
        yield f"has_summary is {encoder.has_summary}, unlike the features, whose summary is {_shape(dense.summary)}."
    for name, view in dense.views.items():
        if view.map.shape[1] != encoder.width or view.valid.shape != view.map[:, 0].shape:
            yield f"the view '{name}' has a map of {tuple(view.map.shape)}, but valid is {tuple(view.valid.shape)}."
        if name == "depth" and (view.cell_vox[0], view.map.shape[2]) != (encoder.cell_vox[0], shape[2]):
            yield f"the view 'depth' has {view.map.shape[2]} bins of {view.cell_vox[0]:g} voxels, unlike the map."
    for axis in range(3):
        yield from misplaced_cells(subject, axis)


def _check_valid(subject: EncoderSubject) -> Iterator[str]:
    encoder = subject.encoder
    box = boxes(subject.shape)
    found = encode(encoder, texture(subject.shape).expand(len(box), -1, -1, -1), box).valid
    for scan, bounds in enumerate(box.tolist()):
        real = torch.zeros(subject.shape)
        real[*(slice(low, high) for low, high in bounds)] = 1
        index = [_cell_of_voxels(encoder, axis, size) for axis, size in enumerate(subject.shape)]
        expected = torch.zeros(found.shape[1:])
        where = torch.meshgrid(*index, indexing="ij")
        expected.index_put_(where, real, accumulate=True)
        if not torch.equal(found[scan], expected > 0):
            yield f"with the valid box {bounds}, the valid cells are not those that hold real voxels."
            return


def _check_padding(subject: EncoderSubject) -> Iterator[str]:
    encoder, shape = subject.encoder, [size - 1 for size in subject.shape]
    volume, box = texture(shape), whole_box(shape)
    plain = encode(encoder, volume, box)
    before = [round(vox * _whole_steps(vox)) for vox in encoder.period_vox]
    for label, start in (("at the end", [0, 0, 0]), ("on both sides", before)):
        padded = torch.full([1, *(size + first + 5 for size, first in zip(shape, start, strict=True))], 700.0)
        padded[:, *_window(start, shape)] = volume
        dense = encode(encoder, padded, box + torch.tensor(start)[:, None])
        for name, view in _parts(plain):
            found = dense.view(name)
            cells = [round(first / vox) for first, vox in zip(start, view.cell_vox, strict=True)]
            inner = found.map[:, :, *_window(cells, view.map.shape[2:])]
            inner = torch.where(view.valid[:, None], inner, 0)
            expected = torch.where(view.valid[:, None], view.map, 0)
            error = _relative(inner, expected)
            if not error <= SAME_TOLERANCE:
                yield f"padding {label} changes cells{_of(name)} by {error:.1e} (relative)."
            if found.summary is not None and view.summary is not None:
                error = _relative(found.summary, view.summary)
                if not error <= SAME_TOLERANCE:
                    yield f"padding {label} changes the summary{_of(name)} by {error:.1e} (relative)."


def _parts(dense: DenseFeatures) -> Iterator[tuple[str, DenseFeatures]]:
    """The map and every view by name."""
    yield "", dense
    yield from dense.views.items()


def _of(name: str) -> str:
    return f" of the view '{name}'" if name else ""


def _window(start: Sequence[int], size: Sequence[int]) -> list[slice]:
    return [slice(first, first + count) for first, count in zip(start, size, strict=True)]


def _check_batch(subject: EncoderSubject) -> Iterator[str]:
    encoder, (volumes, box) = subject.encoder, subject.scans()
    together = encode(encoder, volumes, box)
    for scan in range(len(box)):
        alone = encode(encoder, volumes[scan : scan + 1], box[scan : scan + 1])
        for name, view in _parts(alone):
            valid = view.valid[0]
            error = _relative(together.view(name).map[scan][:, valid], view.map[0][:, valid])
            if not error <= SAME_TOLERANCE:
                yield f"scan {scan}{_of(name)} differs by {error:.1e} (relative) between a batch and alone."
                return


def _check_inputs(subject: EncoderSubject) -> Iterator[str]:
    volumes, box = subject.scans()
    volumes = volumes * 40 - 2000  # beyond every window
    given = volumes.clone(), box.clone()
    encode(subject.encoder, volumes, box)
    if not (torch.equal(volumes, given[0]) and torch.equal(box, given[1])):
        yield "volumes or boxes are changed in place, and readouts read them afterwards. Work on a copy."


def _check_readouts(subject: EncoderSubject) -> Iterator[str]:
    dense = encode(subject.encoder, *subject.scans())
    with torch.no_grad():
        for name, error in readout_differences(dense, subject.shape):
            if not error <= SAME_TOLERANCE:
                yield f"'{name}' rows differ by {error:.1e} (relative) from a loop over the valid cells."


def _check_sizes(subject: EncoderSubject) -> Iterator[str]:
    encoder = subject.encoder
    shape = (subject.shape[0] + 3, subject.shape[1] - 1, subject.shape[2] + 5)
    for volume in (texture(shape), texture(shape).to(torch.int16)):
        dense = encode(encoder, volume, whole_box(shape))
        if tuple(dense.map.shape[2:]) != encoder.grid(shape):
            yield f"a volume of {shape} has a map of {tuple(dense.map.shape)}, but grid() says {encoder.grid(shape)}."
        if not dense.map.isfinite().all():
            yield f"a volume of {shape} and type {volume.dtype} gives features that are not finite."


def _check_gradients(subject: EncoderSubject) -> Iterator[str]:
    encoder = subject.make().train()
    dense = encoder(*subject.scans())
    weight = torch.linspace(-1, 1, dense.map.shape[1])
    total = torch.zeros(())
    for _, view in _parts(dense):
        total = total + (view.map.transpose(1, 4) * weight).sin().sum()
        if view.summary is not None:
            total = total + (view.summary * weight).sin().sum()
    total.backward()  # type: ignore[no-untyped-call]
    trained = [item for item in encoder.parameters() if item.requires_grad]
    if trained and not any(item.grad is not None and bool(item.grad.any()) for item in trained):
        yield "every gradient is zero: nothing of the encoder would be trained."
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            yield f"parameter {name} gets no gradient; ranks would wait for it."
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"the gradient of {name} is not finite."


def _check_state(subject: EncoderSubject) -> Iterator[str]:
    other = subject.make().eval()
    other.load_state_dict(subject.encoder.state_dict())
    volume = texture(subject.shape)
    if not torch.equal(encode(other, volume).map, encode(subject.encoder, volume).map):
        yield "another encoder that loaded the state dict gives other features."


def _check_bf16(subject: EncoderSubject) -> Iterator[str]:
    volume = texture(subject.shape)
    expected = encode(subject.encoder, volume).map
    with torch.autocast("cpu", torch.bfloat16):
        found = encode(subject.encoder, volume).map
    error = _relative(found.float(), expected)
    if not error <= BF16_TOLERANCE:
        yield f"bfloat16 autocast changes the map by {error:.1e} (relative)."


def _check_statistics(subject: EncoderSubject) -> Iterator[str]:
    for name, module in subject.encoder.named_modules():
        if isinstance(module, _BatchNorm):
            yield f"{name} is a {type(module).__name__}: batch statistics make features depend on the batch."


def _check_device(subject: EncoderSubject) -> Iterator[str]:
    volumes, box = subject.scans()
    expected = encode(subject.encoder, volumes, box)
    with elsewhere() as device:
        dense: DenseFeatures = copy.deepcopy(subject.encoder).to(device)(volumes.to(device), box.to(device))
        total = torch.zeros((), device=device)
        for name, view in _parts(dense):
            for what, tensor in (("map", view.map), ("valid", view.valid), ("summary", view.summary)):
                if tensor is not None and tensor.device != device:
                    yield f"{what}{_of(name)} is on the CPU though encoder and volumes are on another device."
                    return
            total = total + view.map.sin().sum()
            error = _relative(view.map.detach().cpu(), expected.view(name).map)
            if not error <= SAME_TOLERANCE:
                yield f"another device changes the map{_of(name)} by {error:.1e} (relative)."
        total.backward()  # type: ignore[no-untyped-call]


_CHECKS: tuple[Callable[[EncoderSubject], Iterator[str]], ...] = (
    _check_grid,
    _check_valid,
    _check_padding,
    _check_batch,
    _check_inputs,
    _check_readouts,
    _check_sizes,
    _check_gradients,
    _check_state,
    _check_bf16,
    _check_statistics,
    _check_device,
)


def _cell_of_voxels(encoder: ImageEncoder, axis: int, size: int) -> Int64[Tensor, "size"]:
    place = (torch.arange(size, dtype=torch.float64) - encoder.offset_vox[axis]) / encoder.cell_vox[axis]
    return torch.floor(place + 0.5).long()


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _whole_steps(vox: float) -> int:
    return 1 if vox.is_integer() else round(1 / (vox % 1))


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
