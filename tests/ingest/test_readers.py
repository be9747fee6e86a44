"""Readers: geometry by header, voxels as stored, and one clear sentence for what is broken."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from ctgrounding.errors import ScanError
from ctgrounding.ingest import read_scan
from ctgrounding.ingest.readers import open_source

SPACING = (3.0, 2.0, 2.0)
LPS = np.array([[-20.0, -30.0, 100.0 + 3.0 * index] for index in range(6)])


def stored_series(hospital):
    return (hospital["body"]((20, 24, 6)).T.astype(np.int32) + 1024).astype(np.int16)


def test_nifti_values_come_as_stored_with_the_headers_rule(hospital, tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = hospital["nifti"](tmp_path / "a.nii.gz", values, np.diag([1.0, 2.0, 3.0, 1.0]), slope=2.0, intercept=-1024)
    source = open_source(path)
    stored = source.load()
    assert (stored.slope, stored.intercept, source.shape_ijk) == (2.0, -1024.0, (2, 3, 4))
    np.testing.assert_array_equal(stored.values, values.T)
    np.testing.assert_allclose(source.affine, np.diag([1.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "ASL"])
def test_orientation_does_not_matter(hospital, tmp_path, codes):
    ras = nib.Nifti1Image(hospital["body"]((20, 24, 6)), np.diag([2.0, 2.0, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    turned = ras.as_reoriented(turn)
    nib.save(turned, tmp_path / "turned.nii")
    nib.save(ras, tmp_path / "ras.nii")
    expected, found = read_scan(tmp_path / "ras.nii", SPACING), read_scan(tmp_path / "turned.nii", SPACING)
    assert found.verdict.facts["orientation"] == codes
    np.testing.assert_array_equal(found.image_hu, expected.image_hu)
    np.testing.assert_allclose(found.grid.origin_mm, expected.grid.origin_mm, atol=1e-4)


def test_a_dicom_series_equals_the_nifti_of_the_same_voxels(hospital, tmp_path):
    stored = stored_series(hospital)
    hospital["dicom"](tmp_path / "dicom", stored, LPS)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, 100.0
    hospital["nifti"](tmp_path / "ct.nii.gz", stored.T, affine, intercept=-1024)
    dicom, nifti = read_scan(tmp_path / "dicom", SPACING), read_scan(tmp_path / "ct.nii.gz", SPACING)
    np.testing.assert_array_equal(dicom.image_hu, nifti.image_hu)
    np.testing.assert_allclose(dicom.grid.origin_mm, nifti.grid.origin_mm, atol=1e-4)


def test_a_series_is_found_in_a_mixed_nested_folder(hospital, tmp_path):
    stored = stored_series(hospital)
    hospital["dicom"](tmp_path / "a", stored, LPS, series=2, first_image=10)
    hospital["dicom"](tmp_path / "a" / "b", stored[:4] + 5, LPS[:4], series=3)
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    assert open_source(tmp_path / "a", 3).shape_ijk == (20, 24, 4)
    assert sorted(open_source(tmp_path / "a", 2).slices) == list(range(10, 16))
    with pytest.raises(ScanError, match="2 series of the folder fit"):
        open_source(tmp_path / "a")
    with pytest.raises(ScanError, match=r"no series 9; it has series numbers 2, 3"):
        open_source(tmp_path / "a", 9)


def test_slices_are_placed_by_position_even_where_numbers_run_down(hospital, tmp_path):
    uids = hospital["dicom"](tmp_path, stored_series(hospital)[::-1], LPS[::-1], first_image=45)
    source = open_source(tmp_path)
    assert source.slices[45].index == 5
    assert source.slices[45].slice_id == uids[0]
    scan = read_scan(tmp_path, SPACING)
    assert (scan.slice_at(115.2).image, scan.slice_at(115.2).depth_mm) == (45, pytest.approx(115.0))
    assert scan.slice_at(-1000).image == 50


def test_gantry_tilt_is_a_sheared_affine(hospital, tmp_path):
    tilt = np.radians(15)
    orientation = [1, 0, 0, 0, np.cos(tilt), -np.sin(tilt)]
    hospital["dicom"](tmp_path, stored_series(hospital), LPS, orientation=orientation)
    scan = read_scan(tmp_path, SPACING)
    assert scan.verdict.facts["tilt_deg"] == pytest.approx(15, abs=0.01)
    assert "tilt" in scan.verdict.flags
    assert scan.body is not None
    corner = scan.source.affine @ np.array([0, 23, 5, 1.0])
    np.testing.assert_allclose(corner[:3], [20, 30 - 23 * 2 * np.cos(tilt), 115 - 23 * 2 * np.sin(tilt)], atol=1e-6)


def missing_slice(folder, hospital):
    keep = [0, 1, 2, 4, 5]
    hospital["dicom"](folder, stored_series(hospital)[keep], LPS[keep])


def repeated_slice(folder, hospital):
    hospital["dicom"](folder, stored_series(hospital), LPS[[0, 1, 2, 3, 3, 4]])


def other_modality(folder, hospital):
    hospital["dicom"](folder, stored_series(hospital), LPS, extra={"Modality": "MR"})


def localizer(folder, hospital):
    hospital["dicom"](folder, stored_series(hospital), LPS, extra={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})


def cut_short(folder, hospital):
    hospital["dicom"](folder, stored_series(hospital), LPS)
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-200])


def no_position(folder, hospital):
    hospital["dicom"](folder, stored_series(hospital), LPS, extra={"ImagePositionPatient": None})


@pytest.mark.parametrize(
    ("breaker", "reason"),
    [
        (missing_slice, "1 slices are missing"),
        (repeated_slice, "repeat the position"),
        (other_modality, "is MR, not CT"),
        (localizer, "localizer"),
        (cut_short, "cut short or cannot be decoded"),
        (no_position, "no position"),
    ],
)
def test_a_broken_series_is_named_without_its_files(hospital, tmp_path, breaker, reason):
    breaker(tmp_path / "smith_john", hospital)
    with pytest.raises(ScanError, match=reason) as raised:
        open_source(tmp_path / "smith_john", 2).load()
    assert "smith" not in str(raised.value)


def test_an_empty_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ScanError, match="no DICOM file"):
        open_source(tmp_path)
    with pytest.raises(ScanError, match="does not exist"):
        open_source(tmp_path / "none.nii.gz")
    (tmp_path / "scan.png").write_bytes(b"png")
    with pytest.raises(ScanError, match="no known kind"):
        open_source(tmp_path / "scan.png")


def test_a_nifti_cut_short_is_named(hospital, tmp_path):
    path = hospital["nifti"](tmp_path / "a.nii.gz", hospital["body"]((20, 24, 6)), np.eye(4))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ScanError, match="cut short or damaged"):
        open_source(path).load()
    path.write_bytes(b"no gzip at all")
    with pytest.raises(ScanError, match="header cannot be read"):
        open_source(path)


def test_a_nifti_without_orientation_or_of_another_shape_is_refused(hospital, tmp_path):
    blank = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), None)
    nib.save(blank, tmp_path / "blank.nii")
    with pytest.raises(ScanError, match="nothing of orientation"):
        open_source(tmp_path / "blank.nii")
    hospital["nifti"](tmp_path / "four.nii", np.zeros((4, 4, 4, 2), np.int16), np.eye(4))
    with pytest.raises(ScanError, match="three-dimensional"):
        open_source(tmp_path / "four.nii")


def test_a_patient_may_be_asked_for_by_path_only_on_the_terminal(tmp_path):
    with pytest.raises(ScanError, match=r"smith.*does not exist"):
        read_scan(tmp_path / "smith.nii.gz", SPACING)


def test_headers_of_a_changed_folder_are_read_again(hospital, tmp_path):
    hospital["dicom"](tmp_path, stored_series(hospital), LPS)
    assert open_source(tmp_path).shape_ijk[2] == 6
    for path in tmp_path.iterdir():
        path.unlink()
    hospital["dicom"](tmp_path, stored_series(hospital)[:4], LPS[:4])
    assert open_source(tmp_path).shape_ijk[2] == 4


def test_headers_of_files_changed_in_their_place_are_read_again(hospital, tmp_path):
    """Neither an overwritten file nor a new one in a folder within changes the folder's own time."""
    hospital["dicom"](tmp_path / "a", stored_series(hospital)[:4], LPS[:4])
    assert open_source(tmp_path).affine[2, 3] == 100
    folder_ns = tmp_path.stat().st_mtime_ns, (tmp_path / "a").stat().st_mtime_ns
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\\-30.0\\1", b"\\-30.0\\2"))
    assert (tmp_path.stat().st_mtime_ns, (tmp_path / "a").stat().st_mtime_ns) == folder_ns
    assert open_source(tmp_path).affine[2, 3] == 200
    (tmp_path / "a" / "copy").write_bytes(path.read_bytes())
    with pytest.raises(ScanError, match="repeat the position"):
        open_source(tmp_path)


def test_headers_that_have_not_changed_are_not_read_again(hospital, tmp_path, monkeypatch):
    hospital["dicom"](tmp_path, stored_series(hospital), LPS)
    expected = open_source(tmp_path)
    monkeypatch.setattr("pydicom.dcmread", lambda *_, **__: pytest.fail("read again"))
    assert open_source(tmp_path).slices == expected.slices


@pytest.mark.parametrize(("written", "number"), [("2.0", 2), ("+2", 2), (" 2.00 ", 2), ("2e0", 2)])
def test_whole_numbers_may_be_written_as_decimals(hospital, tmp_path, written, number):
    hospital["dicom"](tmp_path, stored_series(hospital), LPS)
    path = sorted(tmp_path.iterdir())[2]
    image = int(pydicom.dcmread(path).InstanceNumber)
    write_numbers(path, SeriesNumber=written, InstanceNumber=f"{image}.0")
    source = open_source(tmp_path, number)
    assert (source.series, sorted(source.slices)) == (number, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("written", ["2.5", "two", "inf", "nan"])
def test_numbers_that_are_not_whole_are_named(hospital, tmp_path, written):
    hospital["dicom"](tmp_path, stored_series(hospital), LPS)
    write_numbers(sorted(tmp_path.iterdir())[2], InstanceNumber=written)
    with pytest.raises(ScanError, match="header cannot be read"):
        open_source(tmp_path)


def write_numbers(path, **values):
    """Writes integer strings as they are given, which pydicom would refuse."""
    tags = pydicom.dcmread(path)
    for keyword, value in values.items():
        tag = pydicom.datadict.tag_for_keyword(keyword)
        tags[keyword] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), "IS", len(value) + len(value) % 2, (value + " " * (len(value) % 2)).encode(),
            0, False, True,
        )  # fmt: skip
    tags.save_as(path)


def test_a_slice_without_pixels_of_its_own_size_is_refused(hospital, tmp_path):
    hospital["dicom"](tmp_path, stored_series(hospital), LPS)
    path = sorted(tmp_path.iterdir())[2]
    tags = pydicom.dcmread(path)
    tags.Rows = 12
    tags.save_as(path)
    with pytest.raises(ScanError, match="differ in orientation, pixel spacing or size"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha", "ct.mhd"])
def test_nrrd_and_metaimage_equal_the_nifti_of_the_same_voxels(hospital, tmp_path, name):
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, 100.0
    path = hospital["nifti"](tmp_path / "ct.nii.gz", hospital["body"]((20, 24, 6)), affine)
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / name))
    expected, found = read_scan(path, SPACING), read_scan(tmp_path / name, SPACING)
    np.testing.assert_array_equal(found.image_hu, expected.image_hu)
    np.testing.assert_allclose(found.grid.origin_mm, expected.grid.origin_mm, atol=1e-4)


def test_broken_nrrd_is_named(hospital, tmp_path):
    (tmp_path / "ct.nrrd").write_bytes(b"NRRD0004\nnonsense")
    with pytest.raises(ScanError, match="header cannot be read"):
        open_source(tmp_path / "ct.nrrd")


@pytest.mark.parametrize("name", ["ct.mhd", "ct.mha", "ct.nrrd"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_header_cannot_name_voxels_outside_its_folder(hospital, tmp_path, name, listed):
    path = hospital["nifti"](tmp_path / "ct.nii.gz", hospital["body"]((20, 24, 6)), np.diag([2.0, 2.0, 3.0, 1.0]))
    folder, away = tmp_path / "root", tmp_path / "away"
    folder.mkdir()
    away.mkdir()
    detached = folder / ("ct.nhdr" if name == "ct.nrrd" else "ct.mhd")
    sitk.WriteImage(sitk.ReadImage(str(path)), str(detached))
    detached.rename(folder / name)
    assert read_scan(folder / name, SPACING).image_hu.max() > 0
    (folder / "ct.raw").rename(away / "secret.raw")
    named = "LIST\n../away/secret.raw" if listed else "../away/secret.raw"
    (folder / name).write_text((folder / name).read_text().replace("ct.raw", named))
    with pytest.raises(ScanError, match="names voxels outside its own folder") as caught:
        open_source(folder / name)
    assert "secret" not in str(caught.value)
    (away / "secret.raw").rename(away / "ct.raw")
    (folder / "ct.raw").symlink_to(away / "ct.raw")
    (folder / name).write_text((folder / name).read_text().replace(named, "ct.raw"))
    with pytest.raises(ScanError, match="names voxels outside its own folder"):
        open_source(folder / name)


@pytest.mark.parametrize(
    ("space", "signs"), [("left-posterior-superior", (-1, -1)), ("RAS", (1, 1)), ("left-anterior-superior", (-1, 1))]
)
def test_nrrd_says_where_left_is_or_is_refused(hospital, tmp_path, space, signs):
    path = hospital["nifti"](tmp_path / "ct.nii.gz", hospital["body"]((20, 24, 6)), np.diag([-2.0, -2.0, 3.0, 1.0]))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "ct.nrrd"))
    header, voxels = (tmp_path / "ct.nrrd").read_bytes().split(b"\n\n", 1)
    written = header.replace(b"left-posterior-superior", space.encode())
    (tmp_path / "ct.nrrd").write_bytes(written + b"\n\n" + voxels)
    np.testing.assert_allclose(np.diag(open_source(tmp_path / "ct.nrrd").affine)[:2], np.multiply(2.0, signs))
    for line in (b"space: scanner-xyz", b"space dimension: 3"):
        (tmp_path / "ct.nrrd").write_bytes(header.replace(b"space: left-posterior-superior", line) + b"\n\n" + voxels)
        with pytest.raises(ScanError, match="left and right are unknown"):
            open_source(tmp_path / "ct.nrrd")


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_a_nifti_in_other_units_is_brought_to_mm(hospital, tmp_path, unit, mm):
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, 100.0
    image = nib.Nifti1Image(hospital["body"]((20, 24, 6)), np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(open_source(tmp_path / "ct.nii.gz").affine, affine, atol=1e-4)
