"""Does training know the evaluated patients? Shared patients, volumes and reports, across datasets too."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BUILT_ON: Mapping[str, str] = {
    "ct_rate_fixed": "ct_rate",
    "radgenome": "ct_rate",
    "radgenome_chest_ct": "ct_rate",
    "rexgroundingct": "ct_rate",
    "rexgrounding_ct": "ct_rate",
}
"""Datasets whose scans are another dataset's, under that dataset's patient names."""

_SHOWN = 3


@dataclass(frozen=True)
class Identity:
    """What tells one scan from another.

    Attributes:
        scan: Its name.
        dataset: Name of its dataset card.
        patient: Patient id within the dataset.
        volume: Hash of its voxels; empty where unknown.
        report: Its report; empty where it has none.
    """

    scan: str
    dataset: str
    patient: str
    volume: str = ""
    report: str = ""


@dataclass(frozen=True)
class Leaks:
    """Evaluated scans that training has seen in some way, each with a training scan that shows it.

    Attributes:
        patients: Scans of patients that training has.
        volumes: Scans whose voxels training has, whatever the patient's name.
        reports: Scans of other patients whose report training has word for word. Short normal reports
            repeat, so this alone is no leak of a patient.
        evaluated: Number of evaluated scans.
    """

    patients: tuple[tuple[str, str], ...]
    volumes: tuple[tuple[str, str], ...]
    reports: tuple[tuple[str, str], ...]
    evaluated: int

    @property
    def is_clean(self) -> bool:
        """Whether no patient and no volume is shared."""
        return not self.patients and not self.volumes

    def warnings(self) -> list[str]:
        """One sentence for each kind of leak, with examples; empty where there is none."""
        kinds = (
            (self.patients, "evaluated scans belong to patients of the training data"),
            (self.volumes, "evaluated scans have the same voxels as a training scan"),
            (self.reports, "evaluated scans have a report that a training scan of another patient has word for word"),
        )
        return [
            f"{len(pairs)} of {self.evaluated} {what}, for example "
            + ", ".join(f"{scan} (training: {known})" for scan, known in pairs[:_SHOWN])
            + "."
            for pairs, what in kinds
            if pairs
        ]


def find_leaks(
    training: Iterable[Identity], evaluated: Iterable[Identity], built_on: Mapping[str, str] = BUILT_ON
) -> Leaks:
    """Look for evaluated scans among the training data.

    Patients are compared within a dataset, and between datasets where one is built on the other: equal
    names in unrelated datasets mean nothing. Hashed patient ids match only if both were hashed alike.
    Volumes and reports are compared over all datasets; reports without regard to case and white space.

    Args:
        training: Scans that training, or the choice of a model, may see.
        evaluated: Scans that numbers are reported for.
        built_on: Dataset to the dataset whose patients it has.

    Examples:
        >>> train = [Identity("train_1_a_1", "ct_rate", "train_1")]
        >>> find_leaks(train, [Identity("g1", "radgenome", "train_1")]).warnings()
        ['1 of 1 evaluated scans belong to patients of the training data, for example g1 (training: train_1_a_1).']
    """
    known_patient: dict[tuple[str, str], str] = {}
    known_volume: dict[str, str] = {}
    known_report: dict[str, str] = {}
    for item in training:
        known_patient.setdefault(patient_of(item, built_on), item.scan)
        known_volume.setdefault(item.volume, item.scan)
        known_report.setdefault(_words(item.report), item.scan)
    scans = list(evaluated)
    patients = [
        (item.scan, known_patient[key]) for item in scans if (key := patient_of(item, built_on)) in known_patient
    ]
    volumes = [(item.scan, known_volume[item.volume]) for item in scans if item.volume and item.volume in known_volume]
    same_patient = {scan for scan, _ in patients}
    reports = [
        (item.scan, known_report[words])
        for item in scans
        if (words := _words(item.report)) and words in known_report and item.scan not in same_patient
    ]
    return Leaks(tuple(patients), tuple(volumes), tuple(reports), len(scans))


def patient_of(item: Identity, built_on: Mapping[str, str] = BUILT_ON) -> tuple[str, str]:
    """Dataset whose patient it is, and the patient's name there."""
    dataset = item.dataset.lower().replace("-", "_")
    return built_on.get(dataset, dataset), item.patient


def _words(report: str) -> str:
    return " ".join(report.lower().split())
