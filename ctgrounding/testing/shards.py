"""Tiny shards for tests: a bright ball at a known depth and the sentence that names it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ctgrounding.data.records import OrganSentenceRecord, ScanRecord, SnippetRecord, Split
from ctgrounding.data.shards import Codec, ShardWriter

CLASSES = {1: "liver", 2: "kidney_right", 3: "kidney_left", 4: "spleen"}
LABELS = ("ball", "ball_left", "ball_right")
BALL_HU = 300

_SPACING_MM = (3.0, 1.5, 1.5)


def write_tiny_shards(
    folder: str | Path,
    *,
    scans: int = 12,
    seed: int = 0,
    shards: int = 2,
    shape: tuple[int, int, int] = (16, 32, 32),
    scans_per_study: int = 1,
    dataset: str = "tiny",
    codec: Codec = "zstd",
    with_organs: bool = True,
    splits: tuple[Split, ...] = ("train", "train", "train", "val", "test"),
) -> list[Path]:
    """Write shards of small scans, each with a bright ball in one kidney, a report and a resolved snippet.

    Sizes vary by a few voxels from scan to scan. The ball's depth is the snippet's, its side is in every
    text, and the label map shows both kidneys, so a test can tell where everything must be.

    Args:
        folder: Where to write ``shard-00000.h5`` and so on.
        scans: Number of scans.
        seed: Same seed, same bytes.
        shards: Number of files.
        shape: Smallest shape of a scan.
        scans_per_study: Reconstructions of one study, which share a report.
        dataset: Name of the dataset, part of no id.
        codec: How voxels are kept.
        with_organs: Whether every second study has a label map; else none has.
        splits: Given to the patients in turn.

    Returns:
        The files.

    Examples:
        >>> import tempfile
        >>> from ctgrounding.data.shards import Shard
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Shard(write_tiny_shards(folder, scans=2, shards=1)[0]).records[0].snippets[0].text
        'Bright ball in the right kidney'
    """
    paths = [Path(folder) / f"shard-{number:05d}.h5" for number in range(shards)]
    per_shard = -(-scans // shards)
    for number, path in enumerate(paths):
        with ShardWriter(path, spacing_mm=_SPACING_MM, classes=CLASSES, dataset=dataset, codec=codec) as writer:
            for index in range(number * per_shard, min(scans, (number + 1) * per_shard)):
                study = index // scans_per_study
                split = splits[study % len(splits)]
                record, image_hu, organs = _scan(
                    index, study, split, np.random.default_rng((seed, index)), shape, dataset
                )
                writer.write(record, image_hu, organs if with_organs and study % 2 == 0 else None)
    return paths


def _scan(
    index: int, study: int, split: Split, rng: np.random.Generator, shape: tuple[int, int, int], dataset: str
) -> tuple[ScanRecord, np.ndarray, np.ndarray]:
    depth, height, width = size = (
        int(shape[0] + rng.integers(0, 5)),
        int(shape[1] + rng.integers(0, 5)),
        int(shape[2] + rng.integers(0, 5)),
    )
    side = ("right", "left")[study % 2]
    organs = _organ_map(size)
    image_hu = rng.normal(40, 12, size)
    ball = int(rng.integers(2, depth - 2)), height // 2, width * 3 // 4 if side == "right" else width // 4
    distance = np.linalg.norm(np.argwhere(np.ones(size)) - ball, axis=1).reshape(size)
    image_hu[distance < 2.5] = BALL_HU
    origin_mm = (-0.75 * width, -0.75 * height, float(rng.integers(-300, 300)))
    z_mm = origin_mm[2] + ball[0] * _SPACING_MM[0]
    record = ScanRecord(
        scan_id=f"scan{index:04d}",
        study_id=f"study{study:04d}",
        patient_id=f"patient{study:04d}",
        dataset=dataset,
        split=split,
        shape=size,
        spacing_mm=_SPACING_MM,
        origin_mm=origin_mm,
        valid_box=((0, depth), (0, height), (0, width)),
    )
    return _with_words(record, side, study, z_mm), np.clip(np.rint(image_hu), -1024, 3071).astype(np.int16), organs


def _organ_map(size: tuple[int, ...]) -> np.ndarray:
    depth, height, width = size
    organs = np.zeros(size, np.uint8)
    organs[1 : depth - 1, 2 : height // 3, width // 2 :] = 1
    organs[1 : depth - 1, height // 3 : height - 2, width // 2 + 1 : width - 2] = 2
    organs[1 : depth - 1, height // 3 : height - 2, 2 : width // 2 - 1] = 3
    organs[1 : depth - 1, 2 : height // 3, : width // 3] = 4
    return organs


def _with_words(record: ScanRecord, side: str, study: int, z_mm: float) -> ScanRecord:
    text, other = f"Bright ball in the {side} kidney", "left" if side == "right" else "right"
    findings = f"{text}. The {other} kidney is normal. Study number {study} has bilateral kidneys."
    sentences = (
        OrganSentenceRecord(f"{text}.", (f"kidney_{side}",), "abnormal", "ball", 0, len(text) + 1, "findings"),
        OrganSentenceRecord(f"The {other} kidney is normal.", (f"kidney_{other}",), "normal", "", 0, 0, "findings"),
        OrganSentenceRecord("Spleen not assessed.", ("spleen",), "uncertain", "", 0, 0, "findings"),
    )
    snippet = SnippetRecord(
        text, 2, (7,), f"slice{study}", (z_mm - 1.5, z_mm + 1.5), 0, len(text), "findings", f"kidney_{side}", 7.5
    )
    return replace(
        record,
        report={"findings": findings, "impression": f"Ball on the {side}."},
        labels={"ball": 1, "ball_left": int(side == "left"), "ball_right": int(side == "right"), "unsure": None},
        snippets=(snippet,),
        organ_sentences=sentences,
    )
