"""``ctgrounding doctor``: what this installation can and cannot do, and how to mend it."""

import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from ctgrounding import __version__

LIBRARIES = (
    "torch",
    "torchvision",
    "lightning",
    "jsonargparse",
    "omegaconf",
    "monai",
    "open_clip_torch",
    "transformers",
)


def doctor() -> None:
    """Check this installation: libraries, codecs, devices, and what fails when lightning is imported first.

    Raises:
        SystemExit: With code 1 if something needs mending.
    """
    table = Table("check", "result", "what to do", box=None)
    healthy = True
    for name, check in _CHECKS.items():
        fine, result, remedy = check()
        healthy &= fine
        table.add_row(name, result if fine else f"[red]{result}[/red]", remedy)
    console = Console()
    console.print(table)
    console.print("Everything that ctgrounding needs works." if healthy else "Something above needs mending.")
    if not healthy:
        raise SystemExit(1)


def _python() -> tuple[bool, str, str]:
    fine = sys.version_info >= (3, 11)
    return fine, platform.python_version(), "" if fine else "Install Python 3.11 or later."


def _versions() -> tuple[bool, str, str]:
    found, missing = [f"ctgrounding {__version__}"], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    remedy = f"pip install -c constraints.txt {' '.join(missing)}" if missing else ""
    return not missing, ", ".join(found), remedy


def _codec() -> tuple[bool, str, str]:
    try:
        from ctgrounding.data.shards import codec_works
    except ImportError as error:
        return False, str(error), "pip install h5py hdf5plugin"
    return (True, "Blosc available", "") if codec_works() else (False, "Blosc missing", "Reinstall hdf5plugin.")


def _devices() -> tuple[bool, str, str]:
    import torch

    if not torch.cuda.is_available():
        return True, f"CPU only, {torch.get_num_threads()} threads", ""
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return True, f"{torch.cuda.device_count()} x {', '.join(sorted(names))}", ""


def _convolutions() -> tuple[bool, str, str]:
    """3D convolutions in bfloat16 on the first CUDA device; wrong ones are a failure, slow ones a warning."""
    import torch

    from ctgrounding.encoders.image.conv_trial import try_convolutions

    if not torch.cuda.is_available():
        return True, "not tried: no CUDA device", ""
    trial = try_convolutions(torch.device("cuda", 0))
    result = f"error {100 * trial.error:.1f} %, {trial.slowdown:.1f} x the time of float32"
    return trial.is_right, result, trial.advice()


def _import_order() -> tuple[bool, str, str]:
    """Whether ``import lightning`` works when it comes before ``import ctgrounding``; a warning, not a failure."""
    command = [sys.executable, "-c", "import lightning.pytorch"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        return True, "lightning imports on its own", ""
    return (
        True,
        "lightning fails on its own: torchvision is built for CUDA and torch is not",
        "Import ctgrounding before lightning, torchmetrics, timm or open_clip; it repairs the pair.",
    )


def _lightning_command() -> tuple[bool, str, str]:
    try:
        version("lightning-sdk")
    except PackageNotFoundError:
        return True, "'lightning fit' runs ctgrounding", ""
    return True, "lightning-sdk owns a 'lightning' command too", "Use 'ctgrounding fit'; whichever came last answers."


_CHECKS: dict[str, Callable[[], tuple[bool, str, str]]] = {
    "python": _python,
    "libraries": _versions,
    "shard codec": _codec,
    "devices": _devices,
    "bfloat16 3D convolution": _convolutions,
    "import order": _import_order,
    "'lightning' command": _lightning_command,
}
