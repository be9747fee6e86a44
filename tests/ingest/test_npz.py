"""npz arrays: Rad-ChestCT's geometry unless the file says its own; nothing is unpickled."""

import numpy as np
import pytest

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Grid, orientation
from ctgrounding.ingest import read_scan
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.resample import resample_image


def test_axes_run_to_inferior_posterior_left_at_08_mm(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    np.savez_compressed(tmp_path / "trn00001.npz", ct=values)
    source = open_source(tmp_path / "trn00001.npz")
    assert orientation(source.affine) == "LPI"
    assert source.shape_ijk == (7, 6, 5)
    np.testing.assert_allclose(np.abs(source.affine[:3, :3]).sum(axis=0), 0.8)
    grid = Grid.covering(source.affine, source.shape_ijk, (0.8, 0.8, 0.8))
    image = resample_image(source.load().values, source.affine, grid)
    np.testing.assert_array_equal(image, values[::-1, ::-1, ::-1])


def test_a_file_may_say_its_own_geometry(tmp_path):
    values = np.zeros((4, 5, 6), np.int16)
    np.savez(tmp_path / "a.npz", volume=values, axes="SAR", spacing_mm=[3.0, 1.0, 2.0], origin_mm=[1.0, 2.0, 3.0])
    source = open_source(tmp_path / "a.npz")
    expected = np.diag([2.0, 1.0, 3.0, 1.0])
    expected[:3, 3] = 1, 2, 3
    np.testing.assert_array_equal(source.affine, expected)


class Trap:
    """Would run on unpickling."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: np.savez(p, ct=np.array([Trap()], dtype=object)), "type object"),
        (lambda p: np.savez(p, ct=np.zeros((3, 4), np.int16)), "shape"),
        (lambda p: np.savez(p, a=np.zeros((3, 4, 5)), b=np.zeros(2)), "2 arrays, none of them 'ct'"),
        (lambda p: np.savez(p, ct=np.zeros((3, 4, 5)), axes="XYZ"), "axes 'XYZ'"),
        (lambda p: np.savez(p, ct=np.zeros((3, 4, 5)), axes=np.array([Trap()], dtype=object)), "cannot be read"),
        (lambda p: np.savez(p, ct=np.zeros((3, 4, 5)), spacing_mm=0.8), r"spacing_mm \[0.8\].*three numbers each"),
        (lambda p: np.savez(p, ct=np.zeros((3, 4, 5)), origin_mm=[1.0, 2.0]), r"origin_mm \[1.0, 2.0\]"),
        (lambda p: p.write_bytes(b"no archive"), "cannot be read"),
    ],
)
def test_what_is_no_scan_is_refused(tmp_path, write, reason):
    write(tmp_path / "a.npz")
    with pytest.raises(ScanError, match=reason):
        open_source(tmp_path / "a.npz")


def test_a_file_cut_short_is_named(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", ct=np.random.default_rng(0).integers(0, 9, (20, 20, 20)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ScanError, match=r"cut short or damaged|cannot be read"):
        open_source(tmp_path / "a.npz").load()


def test_axes_that_repeat_are_no_scan(tmp_path):
    np.savez(tmp_path / "a.npz", ct=np.zeros((3, 4, 5), np.int16), axes="IIL")
    with pytest.raises(ScanError, match="degenerate"):
        read_scan(tmp_path / "a.npz", (3.0, 2.0, 2.0))
