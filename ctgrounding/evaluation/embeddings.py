"""Embeddings to disk: what ``predict`` leaves; :mod:`ctgrounding.evaluation.saved` reads it.

A folder holds, for each rank, ``part-*.safetensors`` with the embeddings of one batch each, ``texts-*.safetensors``
with the evaluators' own sentences, and ``index-*.parquet``, one row a scan: where its embeddings stand.
The index is written last, so a folder without one is unfinished. ``about.json`` names the label columns, the heads of
the run's evaluators, the checkpoint, and what training knows of the scans.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads
from ctgrounding.evaluation.protocols.build import Heads
from ctgrounding.evaluation.rows import scan_keys
from ctgrounding.types import Batch, Encoded

FORMAT = "ctgrounding embeddings 1"
ABOUT = "about.json"
_STRINGS = ("scan_id", "study_id", "patient_id", "dataset", "texts")
_LEFT_OUT = ("volume", "organs", "tokens", "token_mask", *_STRINGS)
_ENCODED = ("depth_valid", "depth_mm", "organ_scan", "organ_class", "organ_visible")


class EmbeddingWriter:
    """Saves what evaluators read of each batch.

    Args:
        folder: New or empty.
        evaluators: By name; their readouts, heads and fixed texts are saved.
        reads: Further embeddings to save, for uses of one's own.
        about: Plain values that tell a later evaluation where the embeddings come from.

    Raises:
        ConfigError: If the folder holds embeddings already, or there is nothing to save.
    """

    def __init__(
        self,
        folder: str | Path,
        evaluators: Mapping[str, Evaluator],
        reads: Reads | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.evaluators = Path(folder), dict(evaluators)
        every = [reads or Reads(), *(evaluator.reads() for evaluator in self.evaluators.values())]
        self.image = sorted(frozenset[tuple[str, str]]().union(*(item.image for item in every)))
        self.text = sorted(frozenset[str]().union(*(item.text for item in every)))
        self.rank, self._parts = distributed.rank(), 0
        self._index: dict[str, list[Any]] = {name: [] for name in ("scan", *_STRINGS[:-1], "part", "row")}
        if not self.image and not self.text:
            raise ConfigError(
                "Nothing says which embeddings to save. Configure evaluators, or name readouts and heads."
            )
        if self._named("index", "parquet").exists():
            raise ConfigError(f"{self.folder} holds embeddings already. Name another folder, or remove this one first.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            facts = {**(about or {}), "heads": asdict(Heads.of(self.evaluators.values()))}
            (self.folder / ABOUT).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def add(self, encoded: Mapping[str, Encoded], batch: Batch) -> None:
        """Save a batch.

        Args:
            encoded: The encoded batch as each evaluator sees it, with its fixed texts.
            batch: The batch.

        Raises:
            ConfigError: If a head or readout does not exist.
        """
        if not self._parts:
            self._save_fixed(encoded)
        seen, fields = next(iter(encoded.values())), cast(dict[str, Any], batch)
        texts = torch.arange(len(batch["texts"]), device=seen.text.device)
        tensors = {f"image/{readout}/{head}": seen.image(readout, head) for readout, head in self.image}
        tensors |= {f"text/{head}": seen.texts(texts, head) for head in self.text}
        tensors |= {f"encoded/{name}": getattr(seen, name) for name in _ENCODED}
        tensors |= {f"batch/{name}": value for name, value in fields.items() if _is_saved(name, value)}
        path = self.folder / f"part-{self.rank:04d}-{self._parts:06d}.safetensors"
        _save(path, tensors, {name: fields[name] for name in _STRINGS})
        count = len(batch["scan_id"])
        columns: dict[str, list[Any]] = {
            "scan": scan_keys(batch),
            "part": [path.name] * count,
            "row": list(range(count)),
        }
        columns |= {name: fields[name] for name in _STRINGS[:-1]}
        for name, values in columns.items():
            self._index[name].extend(values)
        self._parts += 1

    def close(self) -> None:
        """Write the index of this rank's scans; without it the folder counts as unfinished."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        integer = {"row": pa.int64()}
        fields = [pa.field(name, integer.get(name, pa.string())) for name in self._index]
        schema = pa.schema(fields, metadata={"format": FORMAT})
        pq.write_table(pa.table(self._index, schema=schema), self._named("index", "parquet"))

    def _save_fixed(self, encoded: Mapping[str, Encoded]) -> None:
        tensors: dict[str, Tensor] = {}
        texts = {}
        for role, evaluator in self.evaluators.items():
            wanted, seen = list(evaluator.fixed_texts()), encoded[role]
            row = dict(zip(seen.planned.tolist(), seen.planned_text.tolist(), strict=True))
            rows = torch.tensor(
                [row[place] for place in range(len(wanted))], dtype=torch.int64, device=seen.text.device
            )
            texts[role] = wanted
            tensors |= {f"{role}/{head}": seen.texts(rows, head) for head in sorted(evaluator.reads().text)}
        _save(self._named("texts", "safetensors"), tensors, {"texts": texts})

    def _named(self, kind: str, ending: str) -> Path:
        return self.folder / f"{kind}-{self.rank:04d}.{ending}"


def _is_saved(name: str, value: object) -> bool:
    return name not in _LEFT_OUT and isinstance(value, Tensor)


def _save(path: Path, tensors: Mapping[str, Tensor], strings: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    rows = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    beside = path.with_name(f".{path.name}")
    save_file(rows, beside, metadata={"format": FORMAT, "strings": json.dumps(strings)})
    beside.replace(path)
