"""Damaged files end in clear errors: thousands of mutated NIfTI, DICOM and shard files, in processes of their own."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hospital_files as hospital
import numpy as np
import pytest

from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import ShardWriter

KINDS = {"nii": 500, "nii.gz": 300, "dicom": 600, "zstd.h5": 450, "none.h5": 250}
"""Kind of file to mutations tried; together more than 2,000."""
LIMIT_S = 10
"""A file that takes more CPU time, or twelve times as much by the clock, counts as a hang."""

CHILD = r"""
import faulthandler, json, logging, random, signal, sys, time, warnings
from pathlib import Path

import pydicom  # before the clock starts
import ctgrounding.ingest.readers.nifti
from ctgrounding.data.shards import Shard
from ctgrounding.errors import CTGroundingError
from ctgrounding.ingest.examination import guarded
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import read_scan
sys.path.insert(0, sys.argv[1])
from test_fuzz import LIMIT_S, mutated

faulthandler.register(signal.SIGPROF, chain=True)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
kind, source, work, first, last = sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])


def use(path):
    if path.suffix == ".h5":
        shard = Shard(path)
        for row, record in enumerate(shard.records):
            shard.verify(row)
            shard.read_image(row, (0, 0, 0), (1, 1, 1))
        return str(shard.empty_places)
    return guarded(lambda: read_scan(path, (4.0, 4.0, 4.0)))


for number in range(first, last):
    path = mutated(source, work, kind, number)
    print(json.dumps({"at": number}), flush=True)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    faulthandler.dump_traceback_later(12 * LIMIT_S, exit=True)
    started = time.monotonic()
    try:
        use(path)
        outcome = "read"
    except CTGroundingError as error:
        outcome = "refused" if 10 < len(str(error)) < 600 else f"unclear: {error}"
    except BaseException as error:
        outcome = f"raw {type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"number": number, "outcome": outcome, "seconds": time.monotonic() - started}), flush=True)
"""


def mutated(source: Path, work: Path, kind: str, number: int) -> Path:
    """A copy of a file (or of a series, one slice of it) with some bytes changed, cut, repeated or moved."""
    rng = random.Random(f"{kind} {number}")
    if source.is_dir():
        target = work / f"series{number}"
        target.mkdir()
        shutil.rmtree(work / f"series{number - 1}", ignore_errors=True)
        names = sorted(path.name for path in source.iterdir())
        chosen = rng.choice(names)
        for name in names:
            data = (source / name).read_bytes()
            (target / name).write_bytes(changed(data, rng) if name == chosen else data)
        return target
    target = work / f"{number % 2}.{kind}"
    target.write_bytes(changed(source.read_bytes(), rng))
    return target


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with up to four mutations; half of them fall on the first kilobyte, where headers are."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        reach = min(len(raw), 1024) if rng.random() < 0.5 else len(raw)
        place = rng.randrange(max(1, reach))
        match rng.randrange(7):
            case 0:
                raw[place] ^= 1 << rng.randrange(8)
            case 1:
                raw[place : place + 4] = rng.randbytes(4)
            case 2:
                raw[place : place + 8] = rng.choice([b"\x00", b"\xff", b"\x7f"]) * 8
            case 3:
                del raw[place:]
            case 4:
                del raw[place : place + rng.randint(1, 64)]
            case 5:
                raw[place:place] = raw[place : place + rng.randint(1, 64)]
            case 6:
                other = rng.randrange(len(raw))
                raw[place : place + 16] = raw[other : other + 16]
        if not raw:
            break
    return bytes(raw)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    hu = hospital.body_hu((14, 12, 8))
    hospital.write_nifti(folder / "a.nii", hu, np.diag([4.0, 4.0, 4.0, 1.0]))
    hospital.write_nifti(folder / "a.nii.gz", hu, np.diag([4.0, 4.0, 4.0, 1.0]))
    positions = np.array([[0.0, 0.0, 4.0 * index] for index in range(8)])
    hospital.write_dicom(folder / "dicom", (hu.astype(np.int32) + 1024).astype(np.int16).T, positions)
    image = np.clip(hu, -1024, 3071).T.copy()
    box = tuple((0, side) for side in image.shape)
    for codec in ("zstd", "none"):
        settings = {"spacing_mm": (4.0, 4.0, 4.0), "classes": {1: "liver"}, "dataset": "demo", "codec": codec}
        with ShardWriter(folder / f"{codec}.h5", **settings) as writer:
            for name in ("a", "b"):
                record = ScanRecord(name, name, name, "demo", "train", image.shape, (4.0,) * 3, (0.0,) * 3, box)
                writer.write(record, image, (image > 0).astype(np.uint8))
            writer.leave_empty("The scan is blank.")
    return folder


def source_of(sources: Path, kind: str) -> Path:
    return sources / {"nii": "a.nii", "nii.gz": "a.nii.gz"}.get(kind, kind)


def outcomes(sources: Path, work: Path, kind: str, count: int) -> list[dict]:
    """What became of every mutation; a process that dies or hangs is one outcome, and the next goes on after it."""
    found: list[dict] = []
    first = 0
    while first < count:
        words = [str(Path(__file__).parent), kind, str(source_of(sources, kind)), str(work), str(first), str(count)]
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            lines = [json.loads(line) for line in child.stdout]
            trouble = child.stderr.read()
        found += [line for line in lines if "outcome" in line]
        done = len(found)
        if done < count:
            assert lines, trouble
            how = "hang" if "Timeout" in trouble or child.returncode == -signal.SIGPROF else f"crash {child.returncode}"
            found.append({"number": lines[-1]["at"], "outcome": f"{how}: {trouble[-800:]}"})
        first = len(found)
    return found


def check(found: list[dict], count: int) -> None:
    assert len(found) == count
    wrong = {line["number"]: line["outcome"] for line in found if line["outcome"] not in ("read", "refused")}
    assert wrong == {}
    assert sum(line["outcome"] == "refused" for line in found) > count // 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_mutated_files_are_read_or_refused(sources, tmp_path, kind):
    check(outcomes(sources, tmp_path, kind, KINDS[kind]), KINDS[kind])


def test_some_of_every_kind_in_the_fast_tier(sources, tmp_path):
    """The same on a few files of each kind, in one process a kind."""
    for kind in ("nii.gz", "dicom", "zstd.h5"):
        found = outcomes(sources, tmp_path, kind, 12)
        assert [line["outcome"] for line in found if line["outcome"] not in ("read", "refused")] == []


def test_the_run_is_as_large_as_promised():
    assert sum(KINDS.values()) >= 2000
