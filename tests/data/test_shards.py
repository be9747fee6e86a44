import json
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.data.records import OrganSentenceRecord, ScanRecord, SnippetRecord
from ctgrounding.data.shards import CHUNK, Shard, ShardWriter, find_shards
from ctgrounding.errors import CTGroundingError, ShardError
from ctgrounding.testing.shards import write_tiny_shards

SHAPE = (40, 70, 90)
CODECS = ("zstd", "lz4", "none")


def record_of(scan_id: str = "scan", shape=SHAPE, **changes) -> ScanRecord:
    box = tuple((0, side) for side in shape)
    plain = ScanRecord(scan_id, "study", "patient", "demo", "train", shape, (3.0, 1.5, 1.5), (1.0, 2.0, 3.0), box)
    return replace(plain, **changes)


def writer_of(path: Path, **changes) -> ShardWriter:
    return ShardWriter(path, **{"spacing_mm": (3.0, 1.5, 1.5), "classes": {1: "liver"}, "dataset": "demo", **changes})


def voxels_of(seed: int = 0, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 60, shape).astype(np.int16), (rng.random(shape) < 0.1).astype(np.uint8)


@pytest.fixture(scope="module", params=CODECS)
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "shard-00000.h5"
    image_hu, organs = voxels_of()
    with writer_of(path, codec=request.param) as writer:
        writer.write(record_of("first"), image_hu, organs)
        writer.leave_empty("NaN voxels")
        writer.write(record_of("third"), image_hu[::-1].copy())
    return Shard(path), image_hu, organs


def test_scans_come_back_as_written(written):
    shard, image_hu, organs = written
    assert [record.scan_id for record in shard.records] == ["first", "third"]
    np.testing.assert_array_equal(shard.read_image(0), image_hu)
    np.testing.assert_array_equal(shard.read_image(1), image_hu[::-1])
    np.testing.assert_array_equal(shard.read_organs(0), organs)
    assert shard.read_organs(1) is None
    assert shard.records[0].organ_voxels == {"liver": int(organs.sum())}
    assert shard.records[1].organ_voxels is None
    assert shard.classes == {1: "liver"}
    assert shard.spacing_mm == (3.0, 1.5, 1.5)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_box_is_the_slice_of_the_whole(written, data):
    shard, image_hu, organs = written
    start = tuple(data.draw(st.integers(0, side - 1)) for side in SHAPE)
    shape = tuple(data.draw(st.integers(1, side - first)) for side, first in zip(SHAPE, start, strict=True))
    box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(shard.read_image(0, start, shape), image_hu[box])
    np.testing.assert_array_equal(shard.read_organs(0, start, shape), organs[box])


@pytest.mark.parametrize(("start", "shape"), [((0, 0, -1), (1, 1, 1)), ((39, 0, 0), (2, 1, 1)), ((0, 0, 0), (1, 0, 1))])
def test_a_box_outside_the_scan_is_refused(written, start, shape):
    with pytest.raises(ShardError, match="leaves row 0"):
        written[0].read_image(0, start, shape)


def test_the_record_keeps_everything(tmp_path):
    snippet = SnippetRecord("Zyste, 12 mm", 2, (5, 6), "uid", (-3.0, 1.5), 3, 9, "findings", "liver", 12.0)
    sentence = OrganSentenceRecord("Leber o.B.", ("liver",), "normal", "", 0, 10, "findings")
    record = record_of(
        valid_box=((1, 40), (0, 70), (0, 80)), report={"findings": "Zyste · " * 20_000, "impression": ""},
        labels={"cyst": 1, "mass": None}, snippets=(snippet,), organ_sentences=(sentence,), verdict={"hu": "stored"},
    )  # fmt: skip
    with writer_of(tmp_path / "a.h5") as writer:
        writer.write(record, voxels_of()[0])
    read = Shard(tmp_path / "a.h5").records[0]
    assert replace(read, sha256="") == record
    assert len(read.sha256) == 64


@pytest.mark.parametrize("codec", CODECS)
def test_same_input_gives_the_same_bytes(tmp_path, codec):
    for name in ("a.h5", "b.h5"):
        with writer_of(tmp_path / name, codec=codec) as writer:
            writer.write(record_of(), *voxels_of())
            writer.leave_empty("cut short")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_bytes_do_not_depend_on_when_an_array_is_let_go_of(tmp_path, monkeypatch):
    """A profiler that looks on keeps what a function has made alive for a while after it has returned."""
    small = (12, 20, 24)

    def write(path):
        with writer_of(path) as writer:
            for seed in range(2):
                writer.write(record_of(str(seed), small), *voxels_of(seed, small))

    write(tmp_path / "a.h5")
    held, create = [], h5py.Group.create_dataset

    def create_and_hold(*positional, **named):
        held.append(create(*positional, **named))
        return held[-1]

    monkeypatch.setattr(h5py.Group, "create_dataset", create_and_hold)
    write(tmp_path / "b.h5")
    assert len(held) == 4
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_layout_is_the_documented_one(tmp_path):
    with writer_of(tmp_path / "a.h5") as writer:
        writer.write(record_of(), *voxels_of())
        writer.write(record_of("small", (8, 9, 10)), voxels_of(shape=(8, 9, 10))[0])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["format_version"] == 1
        assert bytes(file.attrs["orientation"]) == b"RAS"
        assert file["scans/00000/image"].chunks == CHUNK
        assert file["scans/00001/image"].chunks == (8, 9, 10)
        assert "32001" in file["scans/00000/image"]._filters
        assert json.loads(bytes(file["scans/00000"].attrs["record"]))["scan_id"] == "scan"


def test_nothing_stays_when_writing_fails(tmp_path):
    writer = writer_of(tmp_path / "a.h5")
    writer.__enter__()
    writer.write(record_of(), *voxels_of())
    assert (tmp_path / "a.h5.partial").exists()
    writer.__exit__(RuntimeError, RuntimeError("killed"), None)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_is_open_sees_the_new_file(tmp_path):
    path = tmp_path / "a.h5"
    for seed in (1, 2):
        image_hu, organs = voxels_of(seed)
        with writer_of(path) as writer:
            writer.write(record_of(), image_hu, organs)
        np.testing.assert_array_equal(Shard(path).read_image(0), image_hu)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r, i, o: (r, i.astype(np.float32), o), "float32"),
        (lambda r, i, o: (r, i[:-1], o), "Resample"),
        (lambda r, i, o: (replace(r, spacing_mm=(3.0, 1.5, 1.6)), i, o), "Resample"),
        (lambda r, i, o: (r, i - 2000, o), "Clip"),
        (lambda r, i, o: (r, i, o.astype(np.int32)), "uint8"),
        (lambda r, i, o: (r, i, o * 7), r"ids \[7\]"),
    ],
)
def test_scans_that_do_not_fit_are_refused_by_name(tmp_path, change, match):
    with pytest.raises(ShardError, match=match), writer_of(tmp_path / "a.h5") as writer:
        writer.write(*change(record_of("scan17"), *voxels_of()))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"codec": "gzip"}, "Codec 'gzip'"), ({"classes": {0: "air"}}, "1..255"), ({"classes": {256: "x"}}, "1..255")],
)
def test_wrong_arguments_are_refused(tmp_path, changes, match):
    with pytest.raises(ShardError, match=match):
        writer_of(tmp_path / "a.h5", **changes)


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_cut_in_half_is_an_error_with_a_remedy(tmp_path, codec):
    path = write_tiny_shards(tmp_path, shards=1, codec=codec)[0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ShardError, match=r"shard-00000.h5.*copy it again"):
        Shard(path).records  # noqa: B018


@pytest.mark.parametrize("codec", CODECS)
def test_a_changed_byte_is_found(tmp_path, codec):
    path = tmp_path / "a.h5"
    with writer_of(path, codec=codec) as writer:
        writer.write(record_of("scan17"), *voxels_of())
    with h5py.File(path) as file:
        image = file["scans/00000/image"]
        offset = image.id.get_offset() if codec == "none" else image.id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(offset + 2000)
        byte = file.read(1)
        file.seek(offset + 2000)
        file.write(bytes([byte[0] ^ 0x55]))
    with pytest.raises(ShardError, match=r"scan17|row 0"):
        Shard(path).verify(0)
    if codec != "none":
        with pytest.raises(ShardError, match="damaged"):
            Shard(path).read_image(0, (0, 0, 0), (4, 4, 4))


def test_foreign_newer_and_missing_files_are_told_apart(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    newer = write_tiny_shards(tmp_path / "newer", scans=1, shards=1)[0]
    with h5py.File(newer, "a") as file:
        file.attrs["format_version"] = 99
    for path, match in [
        (tmp_path / "text.h5", "no HDF5 file"),
        (tmp_path / "foreign.h5", "no ctgrounding.shard"),
        (newer, "format 99.*Update ctgrounding"),
        (tmp_path / "none.h5", "There is no shard"),
    ]:
        with pytest.raises(ShardError, match=match) as caught:
            Shard(path).records  # noqa: B018
        assert isinstance(caught.value, CTGroundingError)


def test_find_shards(tmp_path):
    written = [path.resolve() for path in write_tiny_shards(tmp_path / "two", scans=2)]
    (tmp_path / "two" / "shard-00002.h5.partial").touch()
    (tmp_path / "empty").mkdir()
    assert find_shards([tmp_path / "two", written[0]]) == written
    with pytest.raises(ShardError, match="There is no shard or folder"):
        find_shards([tmp_path / "nowhere"])
    with pytest.raises(ShardError, match="holds no shard"):
        find_shards([tmp_path / "empty"])


def _checksum(shard: Shard) -> int:
    return sum(int(shard.read_image(row).astype(np.int64).sum()) for row in range(len(shard.records)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_shard_can_be_sent_to_other_processes(tmp_path, method):
    shard = Shard(write_tiny_shards(tmp_path, scans=4, shards=1)[0])
    expected = _checksum(shard)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_checksum, [shard] * 4) == [expected] * 4
    assert _checksum(shard) == expected


def test_pickle_carries_a_path_and_no_voxels(tmp_path):
    shard = Shard(write_tiny_shards(tmp_path, scans=4, shards=1)[0])
    shard.read_image(0)
    assert shard.records
    assert len(pickle.dumps(shard)) < 1000


def test_more_shards_than_descriptors(tmp_path):
    shards = [Shard(path) for path in write_tiny_shards(tmp_path, scans=20, shards=20, shape=(8, 8, 8))]
    before = len(list(Path("/proc/self/fd").iterdir()))
    sums = [_checksum(shard) for shard in shards]
    assert [_checksum(shard) for shard in shards] == sums
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 16
