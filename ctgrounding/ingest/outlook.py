"""What an ingest is about to do: which shards stay, which no longer fit and why, and how much room the rest takes."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.filesize import decimal

from ctgrounding.errors import CardError
from ctgrounding.ingest.notes import ShardNote
from ctgrounding.ingest.plan import ShardPlan

INPUTS = "its scans, masks or rows of tables"
_CAUSES = {"card": "the card's rules", "salt": "the salt of ids, or the card's rule for them", "inputs": INPUTS}


def finished(plans: Sequence[ShardPlan], output: Path) -> tuple[dict[str, ShardNote], dict[str, list[str]]]:
    """Shards to keep, and for those that are finished but no longer fit, what has changed.

    Args:
        plans: The plan.
        output: Folder of the shards.
    """
    kept, changed = {}, {}
    for plan in plans:
        note = ShardNote.of(output, plan.name)
        if note is None:
            continue
        if note.causes == plan.causes:
            kept[plan.name] = note
        else:
            changed[plan.name] = _differences(note.causes, plan.causes)
    if len(kept) < len(plans):  # what a copy repeats may be among those to come
        kept = {name: note for name, note in kept.items() if all(e.kind != "duplicate" for e in note.put_aside)}
    return kept, changed


def check_redo(changed: Mapping[str, Sequence[str]], redo: bool) -> None:
    """Changed inputs redo their shard without a word; what would redo everything needs one.

    Args:
        changed: Finished shards that no longer fit, and why.
        redo: Whether the user said so.

    Raises:
        CardError: If the user did not.
    """
    costly = {name: causes for name, causes in changed.items() if set(causes) != {INPUTS}}
    if costly and not redo:
        first, causes = next(iter(costly.items()))
        raise CardError(
            f"{len(costly)} finished shards would be written again ({first}, ...), because this changed: "
            f"{' and '.join(causes)}. Give --redo to write them again, or another --output to keep them."
        )


def outlook(
    plans: Sequence[ShardPlan],
    to_do: Sequence[ShardPlan],
    changed: Mapping[str, Sequence[str]],
    expected: int,
    output: Path,
) -> str:
    """The plan in a few lines for the terminal.

    Args:
        plans: The plan.
        to_do: Shards to write.
        changed: Finished shards that no longer fit, and why.
        expected: Bytes that the shards to write will take.
        output: Folder of the shards.
    """
    scans = sum(len(plan.scans) for plan in plans)
    lines = [f"Plan: {scans} scans in {len(plans)} shards, {len(plans) - len(to_do)} of them finished."]
    if to_do:
        free = shutil.disk_usage(_existing(output)).free
        room = f"{len(to_do)} to write, about {decimal(expected)} on disk; {decimal(free)} are free."
        lines.append(room if free > expected else f"[bold]{room} That will hardly do.[/bold]")
    for causes, count in Counter(tuple(causes) for causes in changed.values()).items():
        lines.append(f"{count} finished shards no longer fit, because of {' and '.join(causes)}.")
    return "\n".join(lines)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [_CAUSES.get(name) or f"{name} ({before.get(name)}, now {now.get(name)})" for name in names]
