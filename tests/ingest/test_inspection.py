"""Inspect counts what is there, finds what is unsound, warns of text that identifies, and converts without loss."""

from dataclasses import replace

import numpy as np
import pytest

from ctgrounding.cli import main
from ctgrounding.data.records import OrganSentenceRecord, ScanRecord
from ctgrounding.data.shards import Shard, ShardWriter, find_shards
from ctgrounding.errors import ShardError
from ctgrounding.ingest import inspect
from ctgrounding.ingest.inventory import look
from ctgrounding.ingest.text_checks import suspicious_kinds

SHAPE = (40, 20, 30)
SPACING = (5.0, 2.0, 2.0)


def record_of(scan_id, **changes):
    plain = ScanRecord(scan_id, f"study-{scan_id}", f"patient-{scan_id}", "demo", "train", SHAPE, SPACING,
                       (0.0, 0.0, 0.0), tuple((0, side) for side in SHAPE))  # fmt: skip
    return replace(plain, **changes)


def image_of(seed):
    return np.random.default_rng(seed).normal(0, 60, SHAPE).astype(np.int16)


def write(path, records, **options):
    """A shard with an empty place after its first scan."""
    settings = {"spacing_mm": SPACING, "classes": {1: "liver"}, "dataset": "demo"} | options
    with ShardWriter(path, **settings) as writer:
        for number, record in enumerate(records):
            image = image_of(record.scan_id.encode()[-1])
            writer.write(record, image, (image > 0).astype(np.uint8) if number == 0 else None)
            if number == 0:
                writer.leave_empty("The scan is blank: every voxel is 0.")
    return path


@pytest.fixture
def folder(tmp_path):
    verdict = {"hu": {"rule": "header"}, "flags": ["tilt"], "source_spacing_ijk_mm": [0.7, 0.7, 2.5], "slice_axis": 2}
    write(tmp_path / "in" / "shard-00000.h5", [record_of("a", verdict=verdict), record_of("b", labels={"cyst": 1})])
    write(tmp_path / "in" / "shard-00001.h5", [record_of("c", split="test", report={"findings": "Normal."})])
    return tmp_path / "in"


def damage(path):
    """Change one byte in the middle of the file, where voxels are."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(bytes(data))


def test_everything_is_counted(folder):
    found = inspect(str(folder), verify=True)
    assert (found.shards, found.scans, found.patients, found.studies, found.verified) == (2, 3, 3, 3, 3)
    assert found.put_aside == {"The scan is blank: every voxel is 0.": 2}
    assert found.splits == {"train": 2, "test": 1}
    assert found.extents_mm == ((200.0, 40.0, 60.0),) * 3
    assert found.source_slice_mm == (2.5,)
    assert (found.with_organs, found.organs) == (2, {"liver": 2})
    assert found.labels == {"cyst": (1, 0, 2)}
    assert found.flags == {"tilt": 1}
    assert (found.problems, found.suspicious) == ((), {})


def test_the_tables_show_what_was_asked_for(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    inspect(str(folder))
    printed = capsys.readouterr().out
    for expected in ("2 (", "zstd 2", "5 x 2 x 2 3", "places left empty", "blank", "Coverage along z", "200", "100.0%",
                     "liver", "header 1", "tilt 1", "not asked for (--verify)", "sound"):  # fmt: skip
        assert expected in printed


@pytest.mark.parametrize("words", [["--verify"], ["--verify", "true"], ["--verify=true"]])
def test_verify_is_a_flag(folder, capsys, words):
    main(["inspect", str(folder), *words])
    assert "3 scans, all as written" in capsys.readouterr().out


def test_a_flag_before_the_shards_does_not_swallow_them(folder, capsys):
    main(["inspect", "--verify", str(folder)])
    assert "3 scans, all as written" in capsys.readouterr().out
    main(["inspect", "--verify", "false", str(folder)])
    assert "not asked for" in capsys.readouterr().out


def test_damage_is_named_after_all_scans_were_read(folder, capsys):
    damage(folder / "shard-00000.h5")
    with pytest.raises(ShardError, match=r"^1 of 3 scans are damaged. The first: .*shard-00000.h5"):
        inspect(str(folder), verify=True)
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(folder), "--verify"])
    assert capsys.readouterr().err.startswith("error: 1 of 3 scans are damaged")


def test_unsound_sets_are_told(tmp_path):
    first = write(tmp_path / "a.h5", [record_of("a"), record_of("b", patient_id="patient-a", split="test")])
    second = write(tmp_path / "b.h5", [record_of("a", study_id="study-b")], classes={1: "liver", 2: "spleen"})
    assert look([Shard(first), Shard(second)]).problems == (
        "1 scan ids occur more than once",
        "1 images occur more than once",
        "1 patients are in more than one split",
        "1 tables of organ classes",
    )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Compared with 12.03.2019.", ["dates"]),
        ("CT of 3/4/21 is unchanged.", ["dates"]),
        ("Prior CT (2019-11-30).", ["dates"]),
        ("Voruntersuchung vom 3. März 2018.", ["dates"]),
        ("Prior exam of March 3, 2018.", ["dates"]),
        ("Discussed with Dr. Weber.", ["names after titles"]),
        ("Rücksprache mit Prof. Dr. med. Öztürk.", ["names after titles"]),
        ("Frau Müller hat Fieber.", ["names after titles"]),
        ("Accession 12345678.", ["long numbers"]),
        ("UID 1.2.840.113619.2.55", ["long numbers"]),
        ("Nodule of 12.5 x 8.1 mm in segment 6 (series 3, images 5-7), previously 2/14.", []),
        ("Densities of -1024 to 3071 HU; grade 2.5.1 lesion.", []),
        ("Dr examined. Prof agrees. May 5 nodules persist. Die Frau ist nüchtern.", []),
        ("T1 N0 M0. L4/5. 50 % stenosis. 1.5.", []),
    ],
)
def test_text_that_may_identify_is_recognised(text, kinds):
    assert suspicious_kinds(text) == kinds


def test_inspect_warns_of_such_text_and_names_the_scans_without_the_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    sentence = OrganSentenceRecord("Leber wie am 1.2.2019.", ("liver",), "normal", "", 0, 5, "findings")
    records = [
        record_of("a", report={"findings": "Seen by Dr. Weber on 12.03.2019."}),
        record_of("b", organ_sentences=(sentence,)),
        record_of("c", report={"findings": "Normal."}),
    ]
    found = inspect(str(write(tmp_path / "a.h5", records)))
    assert found.suspicious == {"dates": ("a", "b"), "names after titles": ("a",)}
    printed = capsys.readouterr().out
    assert "report text with dates" in printed
    assert "2 scans: a, b" in printed
    assert "Weber" not in printed


@pytest.mark.parametrize(("codec", "chunk"), [("lz4", (16, 16, 16)), ("none", None), (None, (8, 20, 30))])
def test_conversion_keeps_every_scan_and_place(folder, tmp_path, codec, chunk):
    inspect(str(folder), convert=tmp_path / "out", codec=codec, chunk=chunk)
    before, after = ([Shard(path) for path in find_shards([place])] for place in (folder, tmp_path / "out"))
    assert [shard.path.name for shard in before] == [shard.path.name for shard in after]
    for old, new in zip(before, after, strict=True):
        assert new.records == old.records
        assert new.empty_places == old.empty_places
        assert new.attributes["places"] == old.attributes["places"]
        assert new.attributes["provenance"] == old.attributes["provenance"]
        assert new.attributes["codec"] == (codec or "zstd")
        for row in range(len(old.records)):
            np.testing.assert_array_equal(new.read_image(row), old.read_image(row))
    sizes = [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")]
    inspect(str(folder), convert=tmp_path / "out", codec=codec, chunk=chunk)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")] == sizes
    if codec != "none":
        with pytest.raises(ShardError, match="holds something else"):
            inspect(str(folder), convert=tmp_path / "out", codec=codec, chunk=(4, 4, 4))


def test_conversion_refuses_what_would_lose_or_mix(folder, tmp_path):
    with pytest.raises(ShardError, match="is where the shards lie"):
        inspect(str(folder), convert=folder, codec="lz4")
    with pytest.raises(ShardError, match="Say with --convert"):
        inspect(str(folder), codec="lz4")
    with pytest.raises(ShardError, match=r"three positive sizes"):
        inspect(str(folder), convert=tmp_path / "bad", chunk=(0, 1, 1))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "shard-00007.h5", [record_of("z")])
    with pytest.raises(ShardError, match=r"already holds other shards \(shard-00007.h5"):
        inspect(str(folder), convert=tmp_path / "other")
    write(tmp_path / "twin" / "shard-00000.h5", [record_of("z")])
    with pytest.raises(ShardError, match=r"Several shards are called shard-00000\.h5"):
        inspect([str(folder), str(tmp_path / "twin")], convert=tmp_path / "new")
    with pytest.raises(ShardError, match="holds something else"):
        inspect(str(folder / "shard-00000.h5"), convert=tmp_path / "twin")
    damage(folder / "shard-00000.h5")
    with pytest.raises(ShardError, match="shard-00000"):
        inspect(str(folder), convert=tmp_path / "new")
    assert not list((tmp_path / "new").glob("shard-00000*"))
