"""DICOM beyond one uncompressed file a slice: compressed syntaxes, multi-frame objects, folders of mixed series."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from ctgrounding.errors import ScanError
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.readers.dicom import list_series

LPS = np.array([[-20.0, -30.0, 100.0 + 3.0 * index] for index in range(6)])
JPEG_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"


@pytest.fixture
def stored(hospital):
    return (hospital["body"]((20, 24, 6)).T.astype(np.int32) + 1024).astype(np.int16)


def compress_with_pydicom(path, syntax):
    tags = pydicom.dcmread(path)
    tags.compress(syntax)
    tags.save_as(path)


def compress_with_itk(path, compressor):
    """Pixels as ITK compresses them, under the tags that were there."""
    tags = pydicom.dcmread(path)
    image = sitk.GetImageFromArray(tags.pixel_array[None].astype(np.int16))
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path.with_suffix(".dcm")))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(image[:, :, 0])
    written = pydicom.dcmread(path.with_suffix(".dcm"))
    path.with_suffix(".dcm").unlink()
    tags.PixelData = written.PixelData
    tags.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID
    tags["PixelData"].is_undefined_length = True
    tags["PixelData"].VR = "OB"
    tags.save_as(path, enforce_file_format=True)
    return str(written.file_meta.TransferSyntaxUID)


@pytest.mark.parametrize("how", ["rle", "jpeg_ls", "jpeg_lossless", "jpeg_2000"])
def test_compressed_slices_hold_the_values_and_the_rule_of_uncompressed_ones(hospital, stored, tmp_path, how):
    hospital["dicom"](tmp_path, stored, LPS)
    expected = open_source(tmp_path).load()
    for path in sorted(tmp_path.iterdir()):
        if how == "rle":
            compress_with_pydicom(path, RLELossless)
        elif how == "jpeg_ls":
            compress_with_pydicom(path, JPEGLSLossless)
        elif how == "jpeg_lossless":
            assert compress_with_itk(path, "JPEG") == JPEG_LOSSLESS
        else:
            assert compress_with_itk(path, "JPEG2000") == JPEG_2000
    (tmp_path / "touch").mkdir()  # the folder's time, so that headers are read again
    found = open_source(tmp_path).load()
    np.testing.assert_array_equal(found.values, expected.values)
    assert (found.slope, found.intercept) == (expected.slope, expected.intercept) == (1.0, -1024.0)


def test_a_syntax_that_nothing_decodes_is_named_with_what_would(hospital, stored, tmp_path):
    hospital["dicom"](tmp_path, stored, LPS)
    for path in tmp_path.iterdir():
        tags = pydicom.dcmread(path)
        tags.compress(RLELossless)
        tags.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        tags.save_as(path)
    with pytest.raises(ScanError, match=r"High-Throughput JPEG 2000.*pylibjpeg-openjpeg.*or decompress"):
        open_source(tmp_path).load()


def test_slices_of_several_rules_come_in_hu(hospital, stored, tmp_path):
    hospital["dicom"](tmp_path, stored, LPS)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        tags = pydicom.dcmread(path)
        tags.RescaleSlope, tags.RescaleIntercept = 2, -1000 - 10 * number
        tags.save_as(path)
    intercepts = {
        pydicom.dcmread(p).InstanceNumber: float(pydicom.dcmread(p).RescaleIntercept) for p in tmp_path.iterdir()
    }
    found = open_source(tmp_path).load()
    assert (found.slope, found.intercept) == (1.0, 0.0)
    for index in range(6):
        np.testing.assert_array_equal(found.values[index], stored[index] * 2.0 + intercepts[index + 1])


def enhanced(path, stored, positions, order, *, syntax=ExplicitVRLittleEndian, number_before=0, series_uid="1.2.9"):
    """An enhanced CT object whose frames lie in any order."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    tags = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    tags.SOPClassUID, tags.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    tags.Modality, tags.ImageType = "CT", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    tags.SeriesInstanceUID, tags.SeriesNumber, tags.InstanceNumber = series_uid, 5, 1
    tags.StudyInstanceUID, tags.FrameOfReferenceUID, tags.PatientPosition = "1.2.4", "1.2.3", "HFS"
    tags.NumberOfFrames, tags.Rows, tags.Columns = len(order), *stored.shape[1:]
    tags.SamplesPerPixel, tags.PhotometricInterpretation = 1, "MONOCHROME2"
    tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 1
    if number_before:
        tags.ConcatenationFrameOffsetNumber = number_before
    measures, orientation, rescale, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2.0, 2.0], 3.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    tags.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        place, own = Dataset(), Dataset()
        place.ImagePositionPatient = list(map(float, positions[index]))
        own.PlanePositionSequence = [place]
        frames.append(own)
    tags.PerFrameFunctionalGroupsSequence = frames
    tags.PixelData = np.ascontiguousarray(stored[list(order)], "<i2").tobytes()
    if syntax != ExplicitVRLittleEndian:
        tags.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, tags, enforce_file_format=True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_multi_frame_file_is_the_series_of_its_frames(hospital, stored, tmp_path, syntax):
    hospital["dicom"](tmp_path / "single", stored, LPS)
    enhanced(tmp_path / "multi" / "IM1", stored, LPS, (3, 0, 5, 1, 4, 2), syntax=syntax)
    single, multi = open_source(tmp_path / "single"), open_source(tmp_path / "multi")
    np.testing.assert_allclose(multi.affine, single.affine)
    np.testing.assert_array_equal(multi.load().values, single.load().values)
    assert multi.load().intercept == -1024
    np.testing.assert_array_equal(open_source(tmp_path / "multi" / "IM1").load().values, single.load().values)
    assert {image: entry.index for image, entry in multi.slices.items()} == {1: 3, 2: 0, 3: 5, 4: 1, 5: 4, 6: 2}
    assert len({entry.slice_id for entry in multi.slices.values()}) == 6


def test_a_concatenation_over_two_files_is_one_series(stored, tmp_path):
    enhanced(tmp_path / "a", stored, LPS, (0, 1, 2))
    enhanced(tmp_path / "b", stored, LPS, (3, 4, 5), number_before=3)
    source = open_source(tmp_path)
    assert source.shape_ijk == (20, 24, 6)
    assert sorted(source.slices) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(source.load().values, stored)


def coronal(hospital, folder, stored, series=7):
    """A coronal reformat: rows run to the left, columns down, slices to posterior."""
    positions = np.array([[-20.0, -30.0 + 2.0 * index, 118.0] for index in range(6)])
    kind = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}
    hospital["dicom"](folder, stored, positions, orientation=(1, 0, 0, 0, 0, -1), series=series, extra=kind)


def test_a_folder_of_many_series_gives_the_only_original_axial_volume(hospital, stored, tmp_path):
    hospital["dicom"](tmp_path / "a", stored, LPS, series=2)
    thick = {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}
    hospital["dicom"](tmp_path / "b", stored[:4], LPS[:4], series=3, extra=thick)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    hospital["dicom"](tmp_path / "c", stored, LPS, series=1, extra=scout)
    coronal(hospital, tmp_path / "d", stored)
    hospital["dicom"](tmp_path / "e", stored, LPS, series=9, extra={"Modality": "SR"})
    assert open_source(tmp_path).series == 2
    assert open_source(tmp_path, 3).shape_ijk == (20, 24, 4)
    listed = list_series(tmp_path)
    assert {number: series.kind for number, series in listed.items()} == {
        1: "localizer",
        2: "axial",
        3: "derived",
        7: "not axial",
    }
    assert listed[3].images == {1, 2, 3, 4}
    with pytest.raises(ScanError, match="not axial") as refused:
        open_source(tmp_path, 7)
    assert refused.value.kind == "not_ct"


def test_a_number_that_a_localizer_shares_means_the_volume(hospital, stored, tmp_path):
    hospital["dicom"](tmp_path / "a", stored, LPS, series=2)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    hospital["dicom"](tmp_path / "b", stored[:1], LPS[:1], series=2, extra=scout)
    assert open_source(tmp_path, 2).shape_ijk == (20, 24, 6)
