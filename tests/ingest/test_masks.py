"""Organ masks of every kind, against the label map that they were made from."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from ctgrounding import label_sets
from ctgrounding.data.shards import Shard
from ctgrounding.errors import ScanError
from ctgrounding.geometry import Grid
from ctgrounding.ingest import ingest
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.readers.contours import fill_contours
from ctgrounding.ingest.readers.masks import combine, open_organs
from ctgrounding.ingest.resample import resample_labels

LPS = np.array([[-20.0, -30.0, 100.0 + 3.0 * index] for index in range(6)])
SHAPE_IJK = (20, 24, 6)
CLASSES = label_sets.load("total_v2")
LIVER, RIGHT_KIDNEY, SPLEEN = 5, 2, 1


@pytest.fixture
def scan(hospital, tmp_path):
    """A DICOM scan, and a label map of it by index ``(k, j, i)``."""
    stored = (hospital["body"](SHAPE_IJK).T.astype(np.int32) + 1024).astype(np.int16)
    hospital["dicom"](tmp_path / "ct", stored, LPS)
    labels = np.zeros(SHAPE_IJK[::-1], np.uint8)
    labels[1:5, 4:14, 3:10] = LIVER
    labels[2:4, 15:20, 12:17] = RIGHT_KIDNEY
    return open_source(tmp_path / "ct"), labels


def opened(path, image, names=None, classes=CLASSES):
    return open_organs(path, classes, names or {}, image)


def on_grid(source, image):
    grid = Grid.covering(image.affine, image.shape_ijk, (3.0, 2.0, 2.0))
    return resample_labels(source.load().values.astype(np.uint8), source.affine, grid)


def expected_on_grid(labels, image):
    grid = Grid.covering(image.affine, image.shape_ijk, (3.0, 2.0, 2.0))
    return resample_labels(labels, image.affine, grid)


def write_masks(hospital, folder, labels, affine, names, codes="LPS"):
    for label, name in names.items():
        image = nib.Nifti1Image((label == labels.T).astype(np.uint8), affine)
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        turned = image.as_reoriented(turn)
        hospital["nifti"](folder / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)


def test_a_folder_with_a_file_a_class_is_its_label_map(hospital, scan, tmp_path):
    image, labels = scan
    names = {LIVER: "liver", RIGHT_KIDNEY: "kidney_right"}
    write_masks(hospital, tmp_path / "organs", labels, image.affine, names, "RAS")
    write_masks(hospital, tmp_path / "organs", labels, image.affine, {LIVER: "couch"}, "RAS")
    source = opened(tmp_path / "organs", image)
    assert source.facts == {"reader": "mask files", "structures": 2, "left_out": 1}
    np.testing.assert_array_equal(on_grid(source, image), expected_on_grid(labels, image))


def test_names_of_files_may_differ_from_the_label_set(hospital, scan, tmp_path):
    image, labels = scan
    write_masks(hospital, tmp_path / "organs", labels, image.affine, {LIVER: "Leber", RIGHT_KIDNEY: "Kidney-Right"})
    source = opened(tmp_path / "organs", image, {"Leber": "liver"})
    assert set(np.unique(source.load().values)) == {0, LIVER, RIGHT_KIDNEY}
    with pytest.raises(ScanError, match="none of the 2 structures") as refused:
        opened(tmp_path / "organs", image, {"Leber": "", "Kidney-Right": ""})
    assert refused.value.kind == "mask_labels"


def test_files_of_shares_count_from_a_half_by_the_slope_of_their_header(hospital, scan, tmp_path):
    image, labels = scan
    shares = np.where(labels.T == LIVER, 900, 100).astype(np.int16)
    hospital["nifti"](tmp_path / "organs" / "liver.nii.gz", shares, image.affine, slope=0.001)
    source = opened(tmp_path / "organs", image)
    np.testing.assert_array_equal(source.load().values == LIVER, labels == LIVER)


def test_files_on_different_grids_are_refused(hospital, scan, tmp_path):
    image, labels = scan
    write_masks(hospital, tmp_path / "organs", labels, image.affine, {LIVER: "liver"})
    write_masks(hospital, tmp_path / "organs", labels[1:], image.affine, {RIGHT_KIDNEY: "kidney_right"})
    with pytest.raises(ScanError, match="different grids"):
        opened(tmp_path / "organs", image)


def test_the_smaller_structure_has_the_voxel_whatever_the_order():
    whole, inner = np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    inner[1, 1:3, 2:4] = True
    expected = np.where(inner, 7, 9)
    np.testing.assert_array_equal(combine([(9, whole), (7, inner)], (5, 4, 3)), expected)
    np.testing.assert_array_equal(combine([(7, inner), (9, whole)], (5, 4, 3)), expected)


def write_seg(path, ct_folder, labels, names, frame=None):
    """A binary DICOM SEG as other programs write it, slices from the top, through highdicom."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    slices = sorted((pydicom.dcmread(p) for p in ct_folder.iterdir()), key=lambda t: -t.ImagePositionPatient[2])
    for tags in slices:
        tags.PatientID, tags.PatientName, tags.PatientBirthDate, tags.PatientSex = "1", "A^B", "", ""
        tags.StudyDate, tags.StudyTime, tags.AccessionNumber, tags.StudyID = "", "", "", ""
        tags.ReferringPhysicianName = ""
        if frame:
            tags.FrameOfReferenceUID = frame
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names.values(), start=1)
    ]
    masks = np.stack([labels[::-1] == label for label in names], axis=-1).astype(np.uint8)
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)


def test_dicom_seg_is_its_label_map(scan, tmp_path):
    image, labels = scan
    write_seg(tmp_path / "seg/SEG1", tmp_path / "ct", labels, {LIVER: "Liver", RIGHT_KIDNEY: "Right kidney", 99: "GTV"})
    for path in (tmp_path / "seg", tmp_path / "seg/SEG1"):
        source = opened(path, image)
        assert source.facts == {"reader": "dicom seg", "structures": 2, "left_out": 1}
        np.testing.assert_array_equal(on_grid(source, image), expected_on_grid(labels, image))


def test_a_seg_of_another_frame_of_reference_is_refused(scan, tmp_path):
    image, labels = scan
    write_seg(tmp_path / "seg/SEG1", tmp_path / "ct", labels, {LIVER: "Liver"}, frame="1.2.99")
    with pytest.raises(ScanError, match="another frame of reference"):
        opened(tmp_path / "seg", image)


def square(corners_ij, k):
    """A closed contour of LPS points through the edges of the pixels of a box."""
    (i0, j0), (i1, j1) = corners_ij
    ring = [(i0, j0), (i1, j0), (i1, j1), (i0, j1)]
    return [value for i, j in ring for value in (-20.0 + 2.0 * i, -30.0 + 2.0 * j, 100.0 + 3.0 * k)]


def write_rtstruct(path, structures, frame="1.2.3"):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    tags.SOPClassUID, tags.SOPInstanceUID, tags.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    tags.StructureSetROISequence, tags.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points) // 3
            contour.ContourData = points
            drawn.ContourSequence.append(contour)
        tags.StructureSetROISequence.append(region)
        tags.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, tags, enforce_file_format=True)


def test_rtstruct_is_its_label_map_with_holes(scan, tmp_path):
    image, labels = scan
    outer, hole = ((2.5, 3.5), (9.5, 13.5)), ((4.5, 5.5), (6.5, 8.5))
    structures = {
        "Liver": [square(box, k) for k in range(1, 5) for box in ((outer, hole) if k == 2 else (outer,))],
        "kidney right": [square(((11.5, 14.5), (16.5, 19.5)), k) for k in (2, 3)],
        "BODY": [square(((0, 0), (19, 23)), k) for k in range(6)],
    }
    write_rtstruct(tmp_path / "rt/RS1.dcm", structures)
    labels[2, 6:9, 5:7] = 0
    source = opened(tmp_path / "rt", image)
    assert source.facts["left_out"] == 1
    np.testing.assert_array_equal(source.load().values, labels)


def test_contours_on_every_second_slice_fill_those_between(scan, tmp_path):
    image, _ = scan
    write_rtstruct(tmp_path / "rt/RS1.dcm", {"Liver": [square(((2.5, 3.5), (9.5, 13.5)), k) for k in (1, 3)]})
    filled = opened(tmp_path / "rt", image).load().values
    assert [int(plane.any()) for plane in filled] == [1, 1, 1, 1, 1, 0]


def test_contours_of_another_frame_or_plane_are_refused(scan, tmp_path):
    image, _ = scan
    write_rtstruct(tmp_path / "a/RS.dcm", {"Liver": [square(((2, 3), (9, 13)), 2)]}, frame="9.9")
    with pytest.raises(ScanError, match="another frame of reference"):
        opened(tmp_path / "a", image)
    tilted = square(((2, 3), (9, 13)), 2)
    tilted[2] += 30
    write_rtstruct(tmp_path / "b/RS.dcm", {"Liver": [tilted]})
    with pytest.raises(ScanError, match="does not lie in a slice"):
        opened(tmp_path / "b", image).load()


def test_structures_go_into_the_shard_of_their_scan(hospital, scan, tmp_path):
    image, _ = scan
    box = square(((2.5, 3.5), (9.5, 13.5)), 0)
    drawn = {"Leber": [[*np.add(np.reshape(box, (-1, 3)), [0, 0, 3.0 * k]).ravel()] for k in range(1, 5)]}
    write_rtstruct(tmp_path / "rt/RS.dcm", drawn)
    row = {"scan_id": "a", "study_id": "a", "patient_id": "a", "path": "ct", "organs": "rt"}
    hospital["table"](tmp_path / "scans.csv", [row])
    scans, organs = "{table: scans.csv, organs: organs}", "{names: {Leber: liver}}"
    card = f"name: demo\nroot: {tmp_path}\nids: keep\nscans: {scans}\norgans: {organs}\n"
    (tmp_path / "card.yaml").write_text(card)
    summary = ingest(card=str(tmp_path / "card.yaml"), output=tmp_path / "out", spacing_mm=(3.0, 2.0, 2.0), workers=1)
    assert (summary.with_organs, summary.put_aside) == (1, ())
    expected = np.zeros(SHAPE_IJK[::-1], np.uint8)
    expected[1:5, 4:14, 3:10] = LIVER
    stored = Shard(tmp_path / "out/shard-00000.h5").read_organs(0)
    np.testing.assert_array_equal(stored, expected_on_grid(expected, image))


def test_no_or_several_mask_objects_are_refused(scan, tmp_path):
    image, _ = scan
    with pytest.raises(ScanError, match="There are 0 DICOM SEG or RTSTRUCT"):
        opened(tmp_path / "ct", image)
    for name in "ab":
        write_rtstruct(tmp_path / f"rt/{name}.dcm", {"Liver": [square(((2, 3), (9, 13)), 2)]})
    with pytest.raises(ScanError, match="There are 2 DICOM"):
        opened(tmp_path / "rt", image)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 24), st.floats(-4, 24)), min_size=3, max_size=12))
def test_filling_agrees_with_matplotlib_away_from_edges(points):
    """Simple polygons: the corners sorted by angle around their mean."""
    corners = np.array(points)
    around = corners - corners.mean(axis=0)
    ring = corners[np.argsort(np.arctan2(around[:, 1], around[:, 0]), kind="stable")]
    filled = fill_contours([np.column_stack([ring, np.zeros(len(ring))])], (20, 20, 1))[0]
    j, i = np.mgrid[:20, :20]
    centres = np.column_stack([i.ravel(), j.ravel()]).astype(float)
    polygon = Polygon(np.vstack([ring, ring[:1]]), closed=True)
    loose, tight = (polygon.contains_points(centres, radius=r).reshape(20, 20) for r in (1e-6, -1e-6))
    clear = loose == tight
    np.testing.assert_array_equal(filled[clear], loose[clear])


def test_two_structures_of_one_name_are_not_one_silently(scan, tmp_path):
    image, labels = scan
    write_seg(tmp_path / "seg/SEG1", tmp_path / "ct", labels, {LIVER: "Liver", RIGHT_KIDNEY: "Liver"})
    with pytest.raises(ScanError, match="Two structures of the masks mean one organ"):
        opened(tmp_path / "seg", image)


def test_two_files_of_one_name_are_not_one_silently(hospital, scan, tmp_path):
    image, labels = scan
    write_masks(hospital, tmp_path / "organs", labels, image.affine, {LIVER: "liver"})
    (tmp_path / "organs/liver.nii").write_bytes(b"")
    with pytest.raises(ScanError, match="Two structures of the masks mean one organ"):
        opened(tmp_path / "organs", image)
