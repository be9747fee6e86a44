"""Where reports to be mined come from: a dataset card, shards, or a folder of texts. Each part is a worker's task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctgrounding.data.records import ScanRecord
from ctgrounding.errors import CTGroundingError, ReportError, ScanError
from ctgrounding.geometry import Grid, TripleMm, tilt_deg
from ctgrounding.ingest.audit.verdict import TILT_DEG
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.mined import ReadScan
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import bring
from ctgrounding.ingest.snippets import NumberedScan, SlicePosition
from ctgrounding.ingest.supervision import StudySlices, read_report

NOT_KEPT = "names a slice whose place these shards do not hold; mine over the dataset card"


@dataclass(frozen=True)
class CardStudies:
    """Studies of a dataset card, their slices found by the headers of their files.

    Attributes:
        studies: Scans of each study.
        spacing_mm: Grid of the shards along ``D H W``.
        hu: The card's HU rule.
        shared_frame: Whether NIfTI scans of a study share one world frame.
        identity: How ids are written.
    """

    studies: tuple[tuple[PlannedScan, ...], ...]
    spacing_mm: TripleMm
    hu: str
    shared_frame: bool
    identity: Identity = field(repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.studies))

    def scans(self) -> Iterator[ReadScan | str]:
        """Each scan; only a tilted one is read in full, since its slices are intervals inside the body."""
        for scans in self.studies:
            slices = StudySlices(scans, self.identity, self.shared_frame)
            for planned in scans:
                try:
                    yield self._scan(planned, slices)
                except CTGroundingError as error:
                    yield str(error)

    def _scan(self, planned: PlannedScan, slices: StudySlices) -> ReadScan:
        if planned.known_bad:
            raise ScanError(f"The card leaves it out: {planned.known_bad}")
        report = read_report(planned.report)
        try:
            source = open_source(planned.path, planned.series)
            is_tilted = tilt_deg(source.affine) > TILT_DEG
            scan = bring(source, self.spacing_mm, self.hu) if is_tilted else None
        except CTGroundingError:
            raise
        except Exception as error:  # whatever a library makes of a broken file
            raise ScanError(f"It cannot be read ({type(error).__name__}).") from error
        own, study = slices.around(planned, scan) if scan else slices.by_headers(planned, source)
        write = self.identity.write
        return ReadScan(
            write("scan", planned.scan_id),
            write("study", planned.study_id),
            report.sections,
            report.content,
            own,
            study,
            Grid.covering(source.affine, source.shape_ijk, self.spacing_mm).field_mm,
            planned.sentences,
        )


@dataclass(frozen=True)
class ShardScans:
    """Scans of a shard. It holds the places of slices that were cited when it was written, and no others.

    Attributes:
        records: What the shard says of them.
    """

    records: tuple[ScanRecord, ...]

    def __len__(self) -> int:
        return len(self.records)

    def scans(self) -> Iterator[ReadScan | str]:
        """Each scan."""
        for record in self.records:
            try:
                content = read_report(record.report).content
            except ReportError as error:
                yield str(error)
                continue
            own = _places_kept(record)
            field_mm = Grid(record.shape, record.spacing_mm, record.origin_mm).field_mm
            yield ReadScan(
                record.scan_id, record.study_id, record.report, content, own, [own], field_mm, unknown=NOT_KEPT
            )


@dataclass(frozen=True)
class Texts:
    """Text files, one report each.

    Attributes:
        folder: Where they lie.
        paths: The files.
        identity: How their names are written.
    """

    folder: Path
    paths: tuple[Path, ...]
    identity: Identity = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """Their paths in the folder, without suffix."""
        return [path.relative_to(self.folder).with_suffix("").as_posix() for path in self.paths]

    def scans(self) -> Iterator[ReadScan | str]:
        """Each text by its name, as a scan and a study of its own."""
        write = self.identity.write
        for path, name in zip(self.paths, self.names, strict=True):
            try:
                report = read_report({"": path.read_text(encoding="utf-8-sig")})
            except ReportError:
                yield "The file holds no text."
            except UnicodeDecodeError:
                yield "The file is not UTF-8."
            else:
                yield ReadScan(write("scan", name), write("study", name), report.sections, report.content)


def _places_kept(record: ScanRecord) -> NumberedScan:
    """Slices that a record's snippets name; a slice cited alone is known better than one of a range.

    An image cited without its series is the one cited with it: it would have no depth if several series had it.
    """
    places: dict[tuple[int | None, int], SlicePosition] = {}
    for snippet in sorted(record.snippets, key=lambda one: -len(one.images)):
        for image in snippet.images:
            same = [key for key in places if key[1] == image and None in (key[0], snippet.series)]
            place = SlicePosition(snippet.slice_id, *snippet.depth_mm)
            places.update(dict.fromkeys([*same, (snippet.series, image)], place))
    return NumberedScan(record.scan_id, "", places)


def batches(scans: Sequence[ScanRecord], size: int) -> Iterator[ShardScans]:
    """Scans of a shard in tasks of at most ``size``, studies kept together where they are neighbours."""
    start = 0
    while start < len(scans):
        stop = min(start + size, len(scans))
        while stop < len(scans) and scans[stop].study_id == scans[stop - 1].study_id:
            stop += 1
        yield ShardScans(tuple(scans[start:stop]))
        start = stop
