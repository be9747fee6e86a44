"""Shards: the HDF5 files that hold scans. The public names of reading and writing them.

Layout of one file, format version 1::

    /                       attributes: format, format_version, orientation, axes, spacing_mm, value_rule,
                            codec, classes (JSON), dataset, provenance (JSON), places, content_sha256
    /scans/00000            attribute record: a ScanRecord as JSON
    /scans/00000/image      int16 HU, (D, H, W)
    /scans/00000/organs     uint8 label map on the same grid, optional
    /scans/00001            attribute quarantined: why this place is empty

Compressed arrays are cut in chunks of (32, 64, 64) voxels, each with a checksum of its own, so that a crop
reads and checks only the chunks that it touches. The same input gives the same bytes.
"""

from ctgrounding.data.shard_format import CHUNK, HU_RANGE, Codec, check_hashes, find_shards
from ctgrounding.data.shard_reading import Shard, codec_works
from ctgrounding.data.shard_writing import ShardWriter

__all__ = ["CHUNK", "Codec", "HU_RANGE", "Shard", "ShardWriter", "check_hashes", "codec_works", "find_shards"]
