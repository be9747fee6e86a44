"""From image numbers to millimetres, against positions written down by hand."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from ctgrounding.data.records import ScanRecord, SnippetRecord
from ctgrounding.ingest import snippets
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.mining_sources import ShardScans
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.readers.source import ListedSeries
from ctgrounding.ingest.snippets import NumberedScan, SlicePosition, plane_positions, resolve
from ctgrounding.ingest.study_tables import TableSlice
from ctgrounding.ingest.supervision import StudySlices
from ctgrounding.reports import Snippet

ORGANS = frozenset({"liver", "kidney_left"})


def cited(series, images, *, is_prior=False, masks=("kidney_left",)):
    return Snippet("a cyst", series, tuple(images), 3, 9, "findings", masks, masks, 12.0, is_prior)


def scan(scan_id, series, first_z, images, frame="", step=5.0):
    positions = {
        (series, image): SlicePosition(f"{scan_id}/{image}", first_z - step * n, first_z - step * n)
        for n, image in enumerate(images)
    }
    return NumberedScan(scan_id, frame, positions)


THIN = scan("thin", 3, 300.0, range(1, 101))
SOFT = scan("soft", 4, 300.0, range(1, 101))
EVERYWHERE = (-1e4, 1e4)


def depths(records):
    return [record.depth_mm for record in records]


def test_an_image_is_where_its_slice_is_not_where_its_number_is():
    (record,), refused = resolve([cited(3, [61])], THIN, [THIN, SOFT], EVERYWHERE, ORGANS)
    assert record.depth_mm == (0.0, 0.0)
    assert (record.slice_id, record.organ, record.size_mm, record.start, record.end) == (
        "thin/61",
        "kidney_left",
        12.0,
        3,
        9,
    )
    assert not refused


def test_a_range_is_an_interval_and_scattered_images_are_several_places():
    records, _ = resolve([cited(3, [10, 12, 11, 40])], THIN, [THIN], EVERYWHERE, ORGANS)
    assert depths(records) == [(245.0, 255.0), (105.0, 105.0)]
    assert [record.images for record in records] == [(10, 11, 12), (40,)]


def test_an_image_alone_belongs_to_the_only_scan_that_has_it():
    short = scan("short", 4, 300.0, range(1, 21))
    (record,), _ = resolve([cited(None, [61])], THIN, [THIN, short], EVERYWHERE, ORGANS)
    assert record.series is None
    _, refused = resolve([cited(None, [15])], THIN, [THIN, short], EVERYWHERE, ORGANS)
    assert refused == {snippets.SEVERAL: 1}
    _, refused = resolve([cited(None, [500])], THIN, [THIN, short], EVERYWHERE, ORGANS)
    assert refused == {snippets.NOWHERE: 1}


@pytest.mark.parametrize(
    ("snippet", "reason"),
    [
        (cited(3, [61], is_prior=True), snippets.PRIOR),
        (cited(9, [61]), snippets.NO_SERIES),
        (cited(3, [999]), snippets.NO_IMAGE),
        (cited(3, [61, 999]), snippets.NO_IMAGE),
    ],
)
def test_what_cannot_be_settled_is_refused_with_its_reason(snippet, reason):
    records, refused = resolve([snippet], THIN, [THIN, SOFT], EVERYWHERE, ORGANS)
    assert records == ()
    assert refused == {reason: 1}


def beside(kind, series=8, images=(61,)):
    """A scan in whose folder another series lies."""
    listed = {series: ListedSeries(kind, frozenset(images)), 3: ListedSeries("axial", frozenset(range(1, 101)))}
    return NumberedScan("thin", "", THIN.positions, listed=listed)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("localizer", snippets.LOCALIZER),
        ("not axial", snippets.NOT_AXIAL),
        ("derived", snippets.DERIVED),
        ("axial", snippets.NO_SERIES),
    ],
)
def test_a_series_that_gives_no_depth_is_refused_with_what_it_is(kind, reason):
    own = beside(kind)
    assert resolve([cited(8, [61])], own, [own], EVERYWHERE, ORGANS) == ((), {reason: 1})


@pytest.mark.parametrize(
    ("kind", "images", "reason"),
    [
        ("axial", [61], snippets.ELSEWHERE),
        ("derived", [61], snippets.ELSEWHERE),
        ("axial", [60], None),
        ("localizer", [61], None),
        ("not axial", [61], None),
    ],
)
def test_an_image_alone_needs_to_be_in_one_axial_series_only_scan_or_not(kind, images, reason):
    own = beside(kind, images=images)
    records, refused = resolve([cited(None, [61])], own, [own], EVERYWHERE, ORGANS)
    assert refused == ({reason: 1} if reason else {})
    assert len(records) == (0 if reason else 1)


def test_an_image_outside_the_field_of_its_scan_is_refused_whichever_scan_asks():
    cut = NumberedScan("cut", "f", THIN.positions, field_mm=(10.0, 400.0))
    soft = scan("soft", 4, 300.0, range(1, 101), frame="f")
    for own in (cut, soft):
        for snippet in (cited(3, [61]), cited(3, [10, 61])):
            assert resolve([snippet], own, [cut, soft], EVERYWHERE, ORGANS) == ((), {snippets.OUTSIDE: 1})
    (record,), _ = resolve([cited(3, [59])], cut, [cut, soft], EVERYWHERE, ORGANS)
    assert record.depth_mm == (10.0, 10.0)


@pytest.mark.parametrize("series", [3, None])
def test_scans_that_number_no_slices_are_the_reason(series):
    blank = NumberedScan("nifti", "", {})
    assert resolve([cited(series, [61])], blank, [blank], EVERYWHERE, ORGANS) == ((), {snippets.NO_NUMBERS: 1})


def test_two_scans_of_one_series_number_settle_nothing():
    twin = scan("twin", 3, 0.0, range(1, 101))
    _, refused = resolve([cited(3, [61])], THIN, [THIN, twin], EVERYWHERE, ORGANS)
    assert refused == {snippets.SAME_NUMBER: 1}


def test_another_reconstruction_carries_a_snippet_only_in_one_frame_and_inside_its_field():
    snippet = cited(4, [61])
    assert resolve([snippet], THIN, [THIN, SOFT], EVERYWHERE, ORGANS) == ((), {})
    thin, soft = (scan(name, series, 300.0, range(1, 101), frame="f") for name, series in (("thin", 3), ("soft", 4)))
    records, refused = resolve([snippet], thin, [thin, soft], (-100.0, 400.0), ORGANS)
    assert [(record.slice_id, record.depth_mm) for record in records] == [("soft/61", (0.0, 0.0))]
    assert resolve([snippet], thin, [thin, soft], (10.0, 400.0), ORGANS) == ((), {})
    assert not refused


def test_an_organ_without_a_class_is_left_open():
    (record,), _ = resolve([cited(3, [61], masks=("pancreas",))], THIN, [THIN], EVERYWHERE, ORGANS)
    assert record.organ == ""


def test_a_tilted_slice_is_the_range_of_its_body():
    angle = np.radians(20)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1:3, 1] = np.cos(angle), np.sin(angle)
    body = np.zeros((3, 50, 40), bool)
    body[1, 10:31, 5:20] = True
    found = plane_positions(affine, (40, 50, 3), {0: "a", 1: "b"}, body)
    rows = np.argwhere(body[1])[:, 0]
    assert (found[1].low_mm, found[1].high_mm) == pytest.approx(
        (5 + rows.min() * np.sin(angle), 5 + rows.max() * np.sin(angle))
    )
    assert (found[0].low_mm, found[0].high_mm) == pytest.approx((0.0, 49 * np.sin(angle)))


def test_an_upright_slice_is_one_depth():
    found = plane_positions(np.diag([-1.0, -1.0, -2.5, 1.0]), (40, 50, 30), {4: "a"})
    assert found[4] == SlicePosition("a", -10.0, -10.0)


def test_a_slice_that_is_known_with_and_without_its_series_is_one_slice():
    known = SlicePosition("thin/61", 0.0, 0.0)
    thin = NumberedScan("thin", "", {(3, 61): known, (None, 61): known})
    (record,), refused = resolve([cited(None, [61])], thin, [thin], EVERYWHERE, ORGANS)
    assert record.depth_mm == (0.0, 0.0)
    assert not refused


def test_a_record_knows_a_slice_by_its_closest_citation_however_it_is_cited():
    cited_ = [(3, (60, 61, 62), (0.0, 10.0)), (None, (61,), (5.0, 5.0))]
    records = tuple(SnippetRecord("x", series, images, "i", mm, 0, 1, "findings") for series, images, mm in cited_)
    scan_record = ScanRecord("s", "e", "p", "d", "train", (9, 9, 9), (3.0, 1.0, 1.0), (0.0,) * 3, ((0, 9),) * 3)
    (mined,) = ShardScans((replace(scan_record, report={"findings": "x"}, snippets=records),)).scans()
    assert mined.own.position(None, 61) == mined.own.position(3, 61) == SlicePosition("i", 5.0, 5.0)


def test_a_sibling_without_a_usable_affine_does_not_stop_a_scan(hospital, tmp_path):
    path = hospital["nifti"](tmp_path / "a1.nii.gz", np.zeros((4, 4, 4), np.int16), np.eye(4))
    flat = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), None)
    flat.set_sform(np.diag([1, 1, 0, 1]), 1)
    flat.header["pixdim"][1:4] = 1
    nib.save(flat, tmp_path / "a2.nii.gz")
    planned = [PlannedScan(n, "a", "p", "train", tmp_path / f"{n}.nii.gz", None, None, {}, {}) for n in ("a1", "a2")]
    own, study = StudySlices(planned, Identity(), False).by_headers(planned[0], open_source(path))
    assert study == [own]


def test_a_slice_that_the_table_places_twice_has_no_place_whichever_way_its_series_is_given(tmp_path):
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 6), np.int16), np.diag([2.0, 2.0, 3.0, 1.0])), path)
    rows = (TableSlice(None, 1, 0.0), TableSlice(4, 1, 9.0), TableSlice(None, 2, 3.0), TableSlice(5, 2, 6.0))
    planned = PlannedScan("a1", "a", "p", "train", path, 4, None, {}, {}, rows)
    own, _ = StudySlices([planned], Identity(), False).by_headers(planned, open_source(path, 4))
    assert {key: position.low_mm for key, position in own.positions.items()} == {(4, 2): 3.0, (5, 2): 6.0}
