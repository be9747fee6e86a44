"""Finding, reading and checking dataset cards."""

import math
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from ctgrounding import label_sets
from ctgrounding.data.records import Split
from ctgrounding.errors import CardError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.audit.kinds import CHOOSABLE
from ctgrounding.ingest.audit.rule import AuditRule
from ctgrounding.ingest.cards import Card, OrgansRule, SplitRule

HU_RULES = ("auto", "stored")
ID_RULES = ("hash", "keep")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def load_card(card: str | Path, root: Path | None = None) -> Card:
    """Read and check a dataset card.

    Args:
        card: A YAML file, or the name of a card that comes with the package (``phantom``).
        root: Takes the place of the card's root.

    Raises:
        CardError: If the file is missing, empty or names an unknown key, if an environment variable is not
            set, if a value cannot be, or if the root is no folder.

    Examples:
        >>> load_card("phantom", root=Path.cwd()).organs.classes
        'total_v2'
    """
    path = find_card(card)
    try:
        loaded = OmegaConf.to_object(_merged(path, root))
    except ConfigKeyError as error:
        raise CardError(_unknown_key(error, path)) from error
    except InterpolationResolutionError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2].strip('"')
        raise CardError(f"The card {path}, {error.full_key}: {reason}. Export it or give --root FOLDER.") from error
    except MissingMandatoryValue as error:
        raise CardError(f"The card {path} has no value for {error.full_key}. Add it.") from error
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CardError(f"The card {path} cannot be read: {reason}") from error
    if not isinstance(loaded, Card):
        raise CardError(f"The card {path} is not a mapping of keys to values.")
    _check(loaded, path)
    return loaded


def _merged(path: Path, root: Path | None) -> DictConfig:
    given = OmegaConf.load(path)
    if not given or not isinstance(given, DictConfig):
        raise CardError(f"The card {path} is empty or no mapping. Copy data_manifests/own_nifti.yaml and fill it in.")
    if root is not None:
        given["root"] = str(root)
    merged = OmegaConf.merge(OmegaConf.structured(Card), given)
    if not isinstance(merged, DictConfig):
        raise CardError(f"The card {path} is not a mapping of keys to values.")
    return merged


def find_card(card: str | Path) -> Path:
    """The file of a card given as a path or as the name of a packaged card.

    Raises:
        CardError: If there is neither.
    """
    path = Path(card)
    if path.is_file():
        return path
    packaged = Path(str(files("ctgrounding"))) / "_packaged" / "data_manifests"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "data_manifests"
    bundled = folder / f"{path.stem}.yaml"
    if path.parent in (Path(), Path("data_manifests")) and bundled.is_file():
        return bundled
    names = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
    raise CardError(f"There is no card '{card}'. Give a YAML file or one of the cards that come along: {names}.")


def under_root(root: Path, relative: str, key: str) -> Path:
    """A path of the card or its tables, which must stay under the root.

    Raises:
        CardError: If it is absolute, climbs out of the root, leaves it by a link or cannot be followed.
    """
    base = root.resolve()
    try:
        path = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CardError(f"{key}: the path '{relative}' cannot be followed ({error}). Correct it.") from error
    if Path(relative).is_absolute() or not path.is_relative_to(base):
        raise CardError(f"{key}: the path '{relative}' leads out of the card's root {root}. Keep all files under it.")
    return path


def files_under_root(root: Path, pattern: str, key: str) -> list[Path]:
    """The files that a card names by one path or by a pattern with ``*``, in the order of their names.

    Raises:
        CardError: If the path leaves the root, or nothing fits the pattern.
    """
    if not any(sign in pattern for sign in "*?["):
        return [under_root(root, pattern, key)]
    under_root(root, pattern, key)
    try:
        found = sorted(entry for entry in root.glob(pattern) if entry.is_file())
    except ValueError as error:
        raise CardError(f"{key}: '{pattern}' is no pattern of files: {error}. Correct it.") from error
    if not found:
        raise CardError(
            f"{key}: no file under the card's root {root} fits '{pattern}'. {_what_lies_there(root, pattern)} "
            "Check the root and the pattern."
        )
    return [under_root(root, str(entry.relative_to(root)), key) for entry in found]


def _what_lies_there(root: Path, pattern: str) -> str:
    """The first names in the deepest folder of a pattern that there is."""
    fixed = Path(*[part for part in Path(pattern).parts[:-1] if not any(sign in part for sign in "*?[")])
    folder = next(place for place in (root / fixed, *(root / fixed).parents) if place.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
    return f"{folder} holds {shown}."


def _check(card: Card, path: Path) -> None:
    if not Path(card.root).is_dir():
        raise CardError(f"The root '{card.root}' of the card {path} is no folder. Correct it or give --root FOLDER.")
    _one_of(card.hu, HU_RULES, "hu")
    _one_of(card.ids, ID_RULES, "ids")
    _one_of(card.organs.classes, label_sets.NAMES, "organs.classes")
    if card.reports is not None and bool(card.reports.sections) == bool(card.reports.text):
        raise CardError("reports: give either 'sections' (section name to column) or 'text' (one column), not both.")
    if card.reports is not None and card.reports.opening and not card.reports.text:
        raise CardError("reports.opening is for 'text', whole reports in one column, which the card does not name.")
    if card.scans.organs and card.scans.organs_pattern:
        raise CardError("scans: give either 'organs' (a column) or 'organs_pattern', not both.")
    check_spacing(card.spacing_mm)
    _check_organ_names(card.organs)
    _check_split(card.split)
    if (card.split.values or card.split.val_of_train) and not card.scans.split:
        raise CardError(
            "split.values and split.val_of_train are for a column of splits. Name it under scans.split, or give "
            "split.fractions alone."
        )
    _check_audit(card.audit)


def check_spacing(spacing_mm: TripleMm) -> None:
    """Refuse what cannot be a grid's spacing.

    Raises:
        CardError: If it is not three positive numbers.
    """
    if any(not math.isfinite(step) or step <= 0 for step in spacing_mm):
        raise CardError(f"spacing_mm is {list(spacing_mm)}. Give three positive numbers along D, H, W.")


def _check_organ_names(rule: OrgansRule) -> None:
    organs = list(label_sets.load(rule.classes).values())
    for written, organ in rule.names.items():
        if organ and organ not in organs:
            near = ", ".join(get_close_matches(organ, organs, n=3) or organs[:5])
            raise CardError(
                f"organs.names says that '{written}' is '{organ}', which label set {rule.classes} does not have. "
                f"Nearest: {near}."
            )


def _check_split(rule: SplitRule) -> None:
    for name in [*rule.fractions, *rule.values.values()]:
        _one_of(name, SPLITS, "split")
    shares = list(rule.fractions.values())
    if shares and (min(shares) < 0 or not math.isclose(sum(shares), 1.0)):
        raise CardError(f"split.fractions are {dict(rule.fractions)}. They must not be negative and sum to 1.")
    if not 0 <= rule.val_of_train < 1:
        raise CardError(f"split.val_of_train is {rule.val_of_train}. Give a share from 0 to below 1.")


def _check_audit(rule: AuditRule) -> None:
    for kind in rule.quarantine:
        _one_of(kind, CHOOSABLE, "audit.quarantine")
    if rule.min_slices < 1:
        raise CardError(f"audit.min_slices is {rule.min_slices}. It must be at least 1.")


def _one_of(value: str, allowed: tuple[str, ...], key: str) -> None:
    if value not in allowed:
        raise CardError(f"{key} is '{value}'. Use one of {', '.join(allowed)}.")


def _unknown_key(error: ConfigKeyError, path: Path) -> str:
    full_key = str(error.full_key)
    place = error.object_type if is_dataclass(error.object_type) else Card
    known = [entry.name for entry in fields(place)]
    near = get_close_matches(full_key.rpartition(".")[2], known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"The card {path} has an unknown key '{full_key}'.{hint} Known here: {', '.join(known)}."
