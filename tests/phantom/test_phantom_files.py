import csv
import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from ctgrounding import label_sets
from ctgrounding.errors import ConfigError
from ctgrounding.phantom import KINDS, write_patients
from ctgrounding.phantom.acquisition import CODES, STORAGES
from ctgrounding.phantom.files import TABLES, assign
from ctgrounding.phantom.nifti import stored_values, write_image

PATIENTS = 14
SPLIT = (0.5, 0.1, 0.4)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / table).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "out"
    write_patients(output=folder, patients=PATIENTS, format="mixed", seed=3, voxel_mm=12.0, split=SPLIT, workers=1)
    return folder


@pytest.fixture(scope="module")
def truth(written) -> dict[str, dict]:
    lines = (written / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["scan_id"]: line for line in map(json.loads, lines)}


def by_format(folder: Path, kind: str) -> list[dict[str, str]]:
    return [row for row in rows(folder, "scans.csv") if row["path"].startswith(kind)]


def test_same_seed_same_bytes_on_any_number_of_workers(written, tmp_path):
    write_patients(output=tmp_path / "two", patients=PATIENTS, seed=3, voxel_mm=12.0, split=SPLIT, workers=2)
    assert digests(tmp_path / "two") == digests(written)


def test_another_seed_gives_other_bytes(tmp_path):
    for seed in (0, 1):
        write_patients(output=tmp_path / str(seed), patients=2, format="nifti", seed=seed, voxel_mm=16.0, workers=1)
    one, two = digests(tmp_path / "0"), digests(tmp_path / "1")
    assert one["reports.csv"] != two["reports.csv"]


def test_tables_have_their_columns_and_agree(written, truth):
    for table, columns in TABLES.items():
        assert tuple(rows(written, table)[0]) == columns
    scans = rows(written, "scans.csv")
    assert {scan["scan_id"] for scan in scans} == set(truth)
    assert len({scan["patient_id"] for scan in scans}) == PATIENTS
    studies = {scan["study_id"] for scan in scans}
    assert {row["study_id"] for row in rows(written, "reports.csv")} == studies
    for row in rows(written, "labels.csv"):
        assert row["study_id"] in studies
        assert set(row.values()) - {row["study_id"]} <= {"0", "1", ""}
    for scan in scans:
        assert (written / scan["path"]).exists()
        assert (written / scan["organs_path"]).is_file()
    assert by_format(written, "nifti")
    assert by_format(written, "dicom")


def test_truth_repeats_the_labels(written, truth):
    labels = {row["study_id"]: row for row in rows(written, "labels.csv")}
    for line in truth.values():
        assert {f["kind"] for f in line["findings"]} == {k for k in KINDS if labels[line["study_id"]][k] == "1"}


def test_nifti_holds_hu_through_slope_and_intercept(written, truth):
    for scan in by_format(written, "nifti"):
        image = nibabel.load(written / scan["path"])
        hu = np.asarray(image.dataobj)
        padding = truth[scan["scan_id"]]["padding_hu"]
        inside = hu[hu != padding] if padding else hu
        assert inside.min() == -1024
        assert np.abs(hu - np.rint(hu)).max() < 1e-3
        liver = hu[np.asarray(nibabel.load(written / scan["organs_path"]).dataobj) == label_sets.label_of("heart")]
        if liver.size > 50:
            assert 20 < np.median(liver) < 220
        if padding:
            assert hu.min() == padding


def test_organ_maps_share_the_scan_s_grid(written, truth):
    for scan in by_format(written, "nifti"):
        image, organs = (nibabel.load(written / scan[column]) for column in ("path", "organs_path"))
        assert image.shape == organs.shape
        np.testing.assert_array_equal(image.affine, organs.affine)
        assert "".join(nibabel.aff2axcodes(image.affine)) == truth[scan["scan_id"]]["code"]


def test_organs_stand_where_the_truth_says(written, truth):
    """In world coordinates, whatever the axis order: right organs to the right of left ones."""
    for scan in rows(written, "scans.csv"):
        organs = nibabel.load(written / scan["organs_path"])
        array = np.asarray(organs.dataobj)
        for organ, box in truth[scan["scan_id"]]["organs"].items():
            index = np.argwhere(array == label_sets.label_of(organ))
            world = nibabel.affines.apply_affine(organs.affine, index)
            assert (world >= np.array(box["low_mm"]) - 1e-2).all()
            assert (world <= np.array(box["high_mm"]) + 1e-2).all()
        boxes = truth[scan["scan_id"]]["organs"]
        for stem in ("kidney", "lung_lower_lobe", "adrenal_gland"):
            if {f"{stem}_left", f"{stem}_right"} <= set(boxes):
                assert boxes[f"{stem}_right"]["low_mm"][0] > boxes[f"{stem}_left"]["high_mm"][0]


def test_slices_table_gives_the_z_of_the_file_s_slices(written, truth):
    table: dict[str, dict[int, float]] = {}
    for row in rows(written, "slices.csv"):
        table.setdefault(row["scan_id"], {})[int(row["image"])] = float(row["z_mm"])
    assert set(table) == {scan["scan_id"] for scan in by_format(written, "nifti")}
    for scan in by_format(written, "nifti"):
        image = nibabel.load(written / scan["path"])
        along = next(axis for axis, code in enumerate(nibabel.aff2axcodes(image.affine)) if code in "SI")
        index = np.tile((np.array(image.shape) - 1) / 2, (image.shape[along], 1))
        index[:, along] = np.arange(image.shape[along])
        z = np.sort(nibabel.affines.apply_affine(image.affine, index)[:, 2])
        np.testing.assert_allclose(np.sort(list(table[scan["scan_id"]].values())), z, atol=1e-3)


def test_dicom_series_read_back_with_their_geometry(written):
    for scan in by_format(written, "dicom"):
        reader = SimpleITK.ImageSeriesReader()
        names = reader.GetGDCMSeriesFileNames(str(written / scan["path"]))
        reader.SetFileNames(names)
        image = reader.Execute()
        organs = nibabel.load(written / scan["organs_path"])
        hu = SimpleITK.GetArrayFromImage(image)
        assert hu.size == np.prod(organs.shape)
        label = np.asarray(organs.dataobj)
        index = np.argwhere(label == label_sets.label_of("vertebrae_T12"))
        if len(index) == 0:
            continue
        values = []
        for x, y, z in nibabel.affines.apply_affine(organs.affine, index):
            place = image.TransformPhysicalPointToIndex((-x, -y, z))
            values.append(hu[place[2], place[1], place[0]])
        assert np.median(values) > 120  # bone lies under the label of bone


def test_dicom_files_are_valid_ct_images(written):
    for scan in by_format(written, "dicom"):
        files = sorted((written / scan["path"]).iterdir())
        slices = [pydicom.dcmread(file) for file in files]
        assert {ds.SOPClassUID.name for ds in slices} == {"CT Image Storage"}
        assert {ds.SeriesNumber for ds in slices} == {int(scan["series"])}
        assert len({ds.SOPInstanceUID for ds in slices}) == len({ds.InstanceNumber for ds in slices}) == len(slices)
        assert all(ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID for ds in slices)
        assert all(ds.SOPInstanceUID.is_valid for ds in slices)
        assert len({ds.SeriesInstanceUID for ds in slices}) == 1
        for ds in slices:
            assert len(ds.PixelData) == 2 * ds.Rows * ds.Columns
            assert ds.pixel_array.shape == (ds.Rows, ds.Columns)


def test_dicom_references_point_at_the_plane_through_the_finding(written, truth):
    checked = 0
    for scan in by_format(written, "dicom"):
        slices = {}
        for file in (written / scan["path"]).iterdir():
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            slices[int(ds.InstanceNumber)] = ds
        line = truth[scan["scan_id"]]
        centres = {(f["kind"], (f["organs"] or [""])[0]): f["centre_mm"] for f in line["findings"]}
        for reference in line["references"]:
            if reference["series"] != int(scan["series"]) or not reference["kind"]:
                continue
            x, y, z = centres[reference["kind"], reference["organ"]]
            distances = []
            for image in reference["images"]:
                ds = slices[image]
                cosines = np.array(ds.ImageOrientationPatient, float)
                normal = np.cross(cosines[:3], cosines[3:])
                offset = np.array([-x, -y, z]) - np.array(ds.ImagePositionPatient, float)
                distances.append(abs(normal @ offset) / float(ds.SliceThickness))
            assert min(distances) <= 0.5 + 1e-3
            checked += 1
    assert checked


def test_image_numbers_run_downward_in_some_series(tmp_path):
    write_patients(output=tmp_path / "out", patients=8, format="dicom", seed=1, voxel_mm=20.0, workers=1)
    directions = set()
    for scan in rows(tmp_path / "out", "scans.csv"):
        headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in (tmp_path / "out" / scan["path"]).iterdir()]
        headers.sort(key=lambda ds: int(ds.InstanceNumber))
        directions.add(bool(headers[-1].ImagePositionPatient[2] > headers[0].ImagePositionPatient[2]))
    assert directions == {True, False}


def test_splits_go_by_patient_with_exact_counts(written):
    assigned = assign(100, 0, (0.7, 0.1, 0.2))
    assert [sum(part == name for part, _ in assigned) for name in ("train", "val", "test")] == [70, 10, 20]
    assert {wording for part, wording in assigned if part == "train"} == {"train"}
    held_out = [wording for part, wording in assigned if part != "train"]
    assert 0.4 <= held_out.count("held_out") / len(held_out) <= 0.7
    parts: dict[str, set[str]] = {}
    for scan in rows(written, "scans.csv"):
        parts.setdefault(scan["patient_id"], set()).add(scan["split"])
    assert all(len(names) == 1 for names in parts.values())


def test_held_out_reports_share_no_template_with_training_ones(written, truth):
    split = {scan["scan_id"]: scan["split"] for scan in rows(written, "scans.csv")}
    train = {t for scan_id, line in truth.items() if split[scan_id] == "train" for t in line["templates"]}
    held_out = [line for scan_id, line in truth.items() if split[scan_id] != "train"]
    assert sum(not train & set(line["templates"]) for line in held_out) >= 0.4 * len(held_out)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: f"{s.dtype}{s.slope:+g}{s.intercept:+g}")
def test_any_axis_order_and_storage_keeps_every_voxel_in_place(tmp_path, code, storage):
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 3071, (4, 5, 6)).astype(np.int16)
    if storage.padding_hu is not None:
        hu[0, 0, 0] = storage.padding_hu
    affine = np.array([[2.0, 0.1, 0.0, -7.0], [-0.1, 2.0, 0.2, 3.0], [0.0, -0.2, 3.0, 100.0], [0, 0, 0, 1.0]])
    write_image(tmp_path / "scan.nii.gz", hu, affine, code, storage)
    image = nibabel.load(tmp_path / "scan.nii.gz")
    assert "".join(nibabel.aff2axcodes(image.affine)) == code
    back = np.asarray(image.dataobj)
    to_file = np.linalg.inv(image.affine) @ affine
    for d, h, w in np.ndindex(hu.shape):
        i, j, k = np.rint((to_file @ [w, h, d, 1])[:3]).astype(int)
        assert back[i, j, k] == hu[d, h, w]


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: f"{s.dtype}{s.slope:+g}{s.intercept:+g}")
def test_stored_values_fit_their_type(storage):
    hu = np.array([-1024, 0, 3071, storage.padding_hu if storage.padding_hu is not None else 0], np.int16)
    stored = stored_values(hu, storage)
    assert stored.dtype == np.dtype(storage.dtype)
    np.testing.assert_array_equal(stored.astype(np.float64) * storage.slope + storage.intercept, hu)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "at least one"),
        ({"workers": 0}, "workers is 0. Give at least 1"),
        ({"workers": -2}, "workers is -2"),
        ({"seed": -1}, "zero or a positive"),
        ({"format": "png"}, "nifti, dicom or mixed"),
        ({"voxel_mm": 0.0}, "between 0.5 and 50"),
        ({"voxel_mm": float("nan")}, "between 0.5 and 50"),
        ({"split": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"split": (1.2, -0.2, 0.0)}, "sum to 1"),
    ],
)
def test_senseless_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_patients(output=tmp_path / "out", **arguments)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_patients(output=tmp_path, patients=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"
