"""Dataset cards: one YAML file says how a dataset's files become studies.

A card is an OmegaConf structured config. It names tables and columns; a value like
``${oc.env:CT_RATE_ROOT}`` comes from the environment. What a card cannot say is an error that names the
key, not a guess. :mod:`ctgrounding.ingest.card_files` reads and checks them.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ctgrounding.ingest.audit.rule import AuditRule


@dataclass
class JoinedTable:
    """Further columns of the scans, from another table.

    Columns that the scans have already stay as they are; to take one from here, rename it in one of the tables.

    Attributes:
        table: Like every ``table`` of a card: a CSV, Parquet or Excel file under the root, or a pattern with
            ``*`` whose files are read as one table.
        key: Its column that is compared.
        equals: The column of the scans that it is compared with; empty for a column of the same name.
    """

    table: str = MISSING
    key: str = MISSING
    equals: str = ""


@dataclass
class ScansTable:
    """One row a scan (a reconstruction): which columns say what.

    Attributes:
        table: The table's file, or a pattern of several.
        joins: Tables that add columns; a scan without a row there has nothing in them.
        repeated: Whether several rows may describe one scan, whose first one is then taken.
        scan: Column of the scan's id, unique.
        study: Column of the examination, which has one report and may have several scans.
        patient: Column of the patient; splits go by it.
        path: Column of the scan's file or DICOM folder, relative to the root.
        path_pattern: Instead of ``path``: a path with ``{column}`` in it.
        series: Column of the series number; empty if there is none.
        organs: Column of the path of the organ masks; empty if there are none.
        organs_pattern: Instead of ``organs``: a path with ``{column}`` in it.
        split: Column of the split; empty for the card's split rule.
        parse: Column to regular expression; its named groups become further columns, of names that none has yet.
    """

    table: str = MISSING
    joins: list[JoinedTable] = field(default_factory=list)
    repeated: bool = False
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
        table: The table's file, or a pattern of several.
        key: Column that says whose report it is.
        by: What the key is compared with: ``study``, ``scan`` or any column of the scans.
        sections: Section name to column, where sections stand in columns of their own.
        text: Column of the whole report, whose sections are then found in the text.
        opening: Section that such a text begins with where it begins without a heading.
        missing: Texts that mean that there is none.
    """

    table: str = MISSING
    key: str = "study_id"
    by: str = "study"
    sections: dict[str, str] = field(default_factory=dict)
    text: str = ""
    opening: str = ""
    missing: list[str] = field(default_factory=list)


@dataclass
class LabelsTable:
    """One row a study (or a scan) and a column a question, holding 1, 0 or nothing where it is unknown.

    Attributes:
        table: The table's file, or a pattern of several.
        key: Column that says whose labels they are.
        by: What the key is compared with: ``study``, ``scan`` or any column of the scans.
        columns: Question to column; empty takes every column but the key.
        unknown: Further values that mean unknown.
        part: Text that ends the question in a column's name, where several columns (of several places) answer
            one question: it is 1 if any of them is, else 0 if any is, else unknown. Columns without that text
            are none.
    """

    table: str = MISSING
    key: str = "study_id"
    by: str = "study"
    columns: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    part: str = ""


@dataclass
class SlicesTable:
    """One row a slice, for scans whose files do not say which image number is where.

    Attributes:
        table: The table's file, or a pattern of several.
        scan: Column of the scan's id.
        series: Column of the series number; empty takes the scan's.
        image: Column of the image number, as reports cite it.
        z_mm: Column of the slice's world z (RAS, mm); of its centre where it is tilted.
        kind: Column that names slices on which no depth is read, so that a reference to them is refused with
            its reason: ``localizer``, ``derived`` or ``not axial`` (a coronal or sagittal reformat); ``axial`` or
            nothing otherwise. Empty if the table holds axial slices only.
    """

    table: str = MISSING
    scan: str = "scan_id"
    series: str = "series"
    image: str = "image"
    z_mm: str = "z_mm"
    kind: str = ""


@dataclass
class SentencesTable:
    """One row a sentence that belongs to an organ or region, where a dataset gives them beside its reports.

    They take the place of the statements that would be read from the report.

    Attributes:
        table: The table's file, or a pattern of several.
        key: Column that says whose sentence it is.
        by: What the key is compared with: ``study``, ``scan`` or any column of the scans.
        organ: Column of the organ's name; ``organs.names`` may translate it. Rows without one are left out.
        text: Column of the sentence.
    """

    table: str = MISSING
    key: str = "scan_id"
    by: str = "scan"
    organ: str = "organ"
    text: str = "sentence"


@dataclass
class OrgansRule:
    """What the masks hold.

    Attributes:
        classes: Label set of the masks: ``total_v1``, ``total_v2`` or ``radgenome_regions``.
        names: Name of a mask's file, segment or structure to the organ's name in the label set, where they differ;
            nothing leaves it out.
    """

    classes: str = "total_v2"
    names: dict[str, str] = field(default_factory=dict)


@dataclass
class SplitRule:
    """How patients are split.

    Attributes:
        values: Value of the split column to ``train``, ``val`` or ``test``, where they differ.
        fractions: Share of patients of each split where there is no column, drawn by a hash of
            the patient; empty for 0.8, 0.1 and 0.1.
        val_of_train: Share of the patients in ``train`` that is drawn into ``val`` likewise, where a dataset
            comes without a split to choose thresholds on.
    """

    values: dict[str, str] = field(default_factory=dict)
    fractions: dict[str, float] = field(default_factory=dict)
    val_of_train: float = 0.0


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
        sentences: The table of organ sentences; without it they are read from the reports.
        organs: Class map of the organ masks.
        split: The split rule.
        hu: ``auto`` lets the audit decide by the data how values become HU; ``stored`` takes them as HU.
        ids: ``hash`` stores keyed hashes of patient, study, scan and slice ids; ``keep`` stores them as given.
        shared_frame: Whether all scans of a study lie in one world frame. DICOM says it itself
            (FrameOfReferenceUID); NIfTI cannot, and without it a snippet stays with the scan it cites.
        spacing_mm: Grid of the shards along ``D H W``.
        audit: Which findings of the audit leave a scan out.
        known_bad: Scan id to the reason why it is left out.
        known_bad_lists: File (or pattern) under the root with a scan, a study or a file name on each line, to
            the reason why they are left out.
        title: Full name of the dataset.
        citation: How to cite it.
        licence: What its licence allows.
        sources: Where the card's facts come from.
    """

    name: str = MISSING
    root: str = MISSING
    scans: ScansTable = field(default_factory=ScansTable)
    reports: ReportsTable | None = None
    labels: LabelsTable | None = None
    slices: SlicesTable | None = None
    sentences: SentencesTable | None = None
    organs: OrgansRule = field(default_factory=OrgansRule)
    split: SplitRule = field(default_factory=SplitRule)
    hu: str = "auto"
    ids: str = "hash"
    shared_frame: bool = False
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5)
    audit: AuditRule = field(default_factory=AuditRule)
    known_bad: dict[str, str] = field(default_factory=dict)
    known_bad_lists: dict[str, str] = field(default_factory=dict)
    title: str = ""
    citation: str = ""
    licence: str = ""
    sources: list[str] = field(default_factory=list)
