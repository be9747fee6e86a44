"""Dataset cards: one YAML file says how a dataset's files become studies.

A card is an OmegaConf structured config. It names tables and columns; a value like
``${oc.env:CT_RATE_ROOT}`` comes from the environment. What a card cannot say is an error that names the
key, not a guess. :mod:`ctgrounding.ingest.card_files` reads and checks them.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

HU_RULES = ("auto", "stored")
ID_RULES = ("hash", "keep")
SPLITS = ("train", "val", "test")


@dataclass
class ScansTable:
    """One row a scan (a reconstruction): which columns say what.

    Attributes:
        table: CSV or Parquet file under the root.
        scan: Column of the scan's id, unique.
        study: Column of the examination, which has one report and may have several scans.
        patient: Column of the patient; splits go by it.
        path: Column of the NIfTI file or DICOM folder, relative to the root.
        path_pattern: Instead of ``path``: a path with ``{column}`` in it.
        series: Column of the series number; empty if there is none.
        organs: Column of the organ label map's path; empty if there is none.
        organs_pattern: Instead of ``organs``: a path with ``{column}`` in it.
        split: Column of the split; empty for the card's split rule.
        parse: Column to regular expression; its named groups become further columns.
    """

    table: str = MISSING
    scan: str = "scan_id"
    study: str = "study_id"
    patient: str = "patient_id"
    path: str = "path"
    path_pattern: str = ""
    series: str = ""
    organs: str = ""
    organs_pattern: str = ""
    split: str = ""
    parse: dict[str, str] = field(default_factory=dict)


@dataclass
class ReportsTable:
    """One row a study (or a scan, with ``by: scan``) and its report.

    Attributes:
        table: CSV or Parquet file under the root.
        key: Column of the study's (or scan's) id.
        by: ``study`` or ``scan``.
        sections: Section name to column, where sections stand in columns of their own.
        text: Column of the whole report, whose sections are then found in the text.
    """

    table: str = MISSING
    key: str = "study_id"
    by: str = "study"
    sections: dict[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass
class LabelsTable:
    """One row a study (or a scan) and a column a question, holding 1, 0 or nothing where it is unknown.

    Attributes:
        table: CSV or Parquet file under the root.
        key: Column of the study's (or scan's) id.
        by: ``study`` or ``scan``.
        columns: Question to column; empty takes every column but the key.
        unknown: Further values that mean unknown.
    """

    table: str = MISSING
    key: str = "study_id"
    by: str = "study"
    columns: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@dataclass
class SlicesTable:
    """One row a slice, for scans whose files do not say which image number is where.

    Attributes:
        table: CSV or Parquet file under the root.
        scan: Column of the scan's id.
        series: Column of the series number; empty takes the scan's.
        image: Column of the image number, as reports cite it.
        z_mm: Column of the slice's world z (RAS, mm); of its centre where it is tilted.
    """

    table: str = MISSING
    scan: str = "scan_id"
    series: str = "series"
    image: str = "image"
    z_mm: str = "z_mm"


@dataclass
class OrgansRule:
    """What the label maps hold.

    Attributes:
        classes: Label set of the masks: ``total_v1`` or ``total_v2``.
    """

    classes: str = "total_v2"


@dataclass
class SplitRule:
    """How patients are split.

    Attributes:
        values: Value of the split column to ``train``, ``val`` or ``test``, where they differ.
        fractions: Share of patients of each split where there is no column, drawn by a hash of
            the patient; empty for 0.8, 0.1 and 0.1.
    """

    values: dict[str, str] = field(default_factory=dict)
    fractions: dict[str, float] = field(default_factory=dict)


@dataclass
class Card:
    """How the files of one dataset become studies, scans, reports and masks.

    Attributes:
        name: Short name, stored with every scan.
        root: Folder that all paths are relative to and cannot leave.
        scans: The table of scans.
        reports: The table of reports.
        labels: The table of labels.
        slices: The table of slices; DICOM needs none.
        organs: Class map of the organ masks.
        split: The split rule.
        hu: ``auto`` lets the audit decide by the data how values become HU; ``stored`` takes them as HU.
        ids: ``hash`` stores keyed hashes of patient, study, scan and slice ids; ``keep`` stores them as given.
        shared_frame: Whether all scans of a study lie in one world frame. DICOM says it itself
            (FrameOfReferenceUID); NIfTI cannot, and without it a snippet stays with the scan it cites.
        spacing_mm: Grid of the shards along ``D H W``.
        known_bad: Scan id to the reason why it is left out.
        title: Full name of the dataset.
        citation: How to cite it.
        licence: What its licence allows.
    """

    name: str = MISSING
    root: str = MISSING
    scans: ScansTable = field(default_factory=ScansTable)
    reports: ReportsTable | None = None
    labels: LabelsTable | None = None
    slices: SlicesTable | None = None
    organs: OrgansRule = field(default_factory=OrgansRule)
    split: SplitRule = field(default_factory=SplitRule)
    hu: str = "auto"
    ids: str = "hash"
    shared_frame: bool = False
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5)
    known_bad: dict[str, str] = field(default_factory=dict)
    title: str = ""
    citation: str = ""
    licence: str = ""
