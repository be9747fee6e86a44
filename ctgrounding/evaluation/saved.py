"""Embeddings from disk: evaluators fed without a model, from what ``predict`` left."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.evaluation.embeddings import ABOUT
from ctgrounding.types import Batch, Encoded

EncodeTexts = Callable[[Sequence[str], str], Tensor]
_COMPARED = 4
_SAME_COSINE = 0.95  # bfloat16 moves a sentence by less, another fit by more


@dataclass(frozen=True)
class SavedEncoded(Encoded):
    """A batch's embeddings as they were saved; readouts before the heads are gone."""

    image_rows: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    text_rows: Mapping[str, Tensor] = field(default_factory=dict)

    def image(self, readout: str, head: str) -> Float[Tensor, "... M"]:
        """Saved embeddings of a readout.

        Raises:
            ConfigError: If they were not saved.
        """
        if (readout, head) not in self.image_rows:
            saved = ", ".join(f"{one} through {other}" for one, other in sorted(self.image_rows))
            raise ConfigError(f"Readout '{readout}' through head '{head}' was not saved; there are: {saved}.")
        return self.image_rows[readout, head]

    def texts(self, rows: Int64[Tensor, "R"], head: str) -> Float[Tensor, "R M"]:
        """Saved embeddings of texts.

        Raises:
            ConfigError: If they were not saved.
        """
        if head not in self.text_rows:
            raise ConfigError(f"Text head '{head}' was not saved; there are: {', '.join(sorted(self.text_rows))}.")
        return self.text_rows[head][rows]


class _NoHeads:
    """Stands for heads that are not there."""

    def image(self, name: str, rows: Tensor) -> Tensor:
        raise ConfigError(f"Saved embeddings have no heads, so '{name}' cannot be applied. Load the model itself.")

    def text(self, name: str, rows: Tensor, which: Tensor | None = None) -> Tensor:
        return self.image(name, rows)

    def logit(self, name: str) -> tuple[Tensor, Tensor]:
        raise ConfigError(f"Saved embeddings have no logit '{name}'. Load the model itself.")


class SavedEmbeddings:
    """Reads a folder of embeddings.

    Args:
        folder: What :class:`ctgrounding.evaluation.embeddings.EmbeddingWriter` wrote.

    Raises:
        ConfigError: If the folder holds none or is unfinished.

    Examples:
        Evaluate again, without the model::

            saved = SavedEmbeddings("runs/demo/embeddings")
            saved.feed({"retrieval": retrieval})
            numbers = retrieval.compute()
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self._indexes():
            raise ConfigError(f"{folder} holds no finished embeddings. Write them with 'ctgrounding predict' first.")
        self._place = {
            scan: (part, row)
            for table in self._tables()
            for scan, part, row in zip(table["scan"], table["part"], table["row"], strict=True)
        }

    @property
    def about(self) -> dict[str, Any]:
        """Where the embeddings come from: ``label_names``, ``heads``, ``checkpoint``, ``warnings``, as far as noted."""
        path = self.folder / ABOUT
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return noted

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets that the scans belong to, sorted."""
        return sorted({scan.partition("/")[0] for scan in self._place})

    @property
    def scans(self) -> list[str]:
        """Names of all scans, with their dataset, sorted."""
        return sorted(self._place)

    def vector(self, scan: str, readout: str = "global", head: str = "main") -> Float[Tensor, "..."]:
        """Embedding of one scan: one vector, or one a depth bin.

        Args:
            scan: Name with dataset, as in :attr:`scans`.
            readout: ``global`` or ``depth``; organs belong to no row and are read by :meth:`batches`.
            head: Image head.

        Raises:
            ConfigError: If the scan or the embedding was not saved.
        """
        from safetensors import safe_open

        if scan not in self._place:
            raise ConfigError(f"Scan '{scan}' is not among the {len(self._place)} scans of {self.folder}.")
        part, row = self._place[scan]
        name = f"image/{readout}/{head}"
        with safe_open(self.folder / part, framework="pt") as file:
            if readout == "organ" or name not in file.keys():  # noqa: SIM118 - no mapping
                heads = sorted(key.rpartition("/")[2] for key in file.keys() if key.startswith(f"image/{readout}/"))  # noqa: SIM118
                raise ConfigError(
                    f"Readout '{readout}' through head '{head}' has no saved row for each scan. "
                    f"Saved heads of it: {', '.join(heads) or 'none'}."
                )
            rows: Tensor = file.get_slice(name)[row : row + 1]
        return rows[0]

    def feed(
        self, evaluators: Mapping[str, Evaluator], encode: EncodeTexts | None = None, as_validation: bool = False
    ) -> None:
        """Give every evaluator this rank's share of the batches.

        Args:
            evaluators: By the names they had when the embeddings were saved.
            encode: Encodes sentences that were not saved, from texts and text head to unit vectors; None makes
                such a sentence an error.
            as_validation: Whether the scans are those on which evaluators choose thresholds.

        Raises:
            ConfigError: If an evaluator needs what was not saved.
        """
        chosen = {role: item for role, item in evaluators.items() if item.wants_validation or not as_validation}
        fixed = {role: self._fixed(role, evaluator, encode) for role, evaluator in chosen.items()}
        for part in self._parts()[distributed.rank() :: distributed.world_size()]:
            encoded, batch = self._load(part)
            for role, evaluator in chosen.items():
                update = evaluator.update_validation if as_validation else evaluator.update
                update(_with_fixed(encoded, fixed[role]), batch)

    def check_made_by(self, encode: EncodeTexts) -> None:
        """Refuse a model whose sentences do not lie where those saved beside the scans do.

        Args:
            encode: Of the model: from texts and text head to unit vectors.

        Raises:
            ConfigError: If a sentence has a cosine under 0.95 with its saved vector, or another width.
        """
        parts = (self._load(part) for part in self._parts())
        for encoded, batch in parts:
            texts = batch["texts"][:_COMPARED]
            for head, rows in encoded.text_rows.items() if texts else ():
                made, saved = encode(texts, head), rows[:_COMPARED].float()
                if made.shape != saved.shape or not bool(((made * saved).sum(1) >= _SAME_COSINE).all()):
                    raise ConfigError(
                        f"The embeddings in {self.folder} are of another model: a sentence saved with them has another "
                        f"place here (text head '{head}'). Name the run or checkpoint that wrote them with --model, or "
                        "remove them and run 'ctgrounding predict' again."
                    )
            if texts:
                return

    def batches(self) -> Iterator[tuple[SavedEncoded, Batch]]:
        """Every saved batch, in order, without fixed texts; volumes and tokens are empty."""
        for part in self._parts():
            yield self._load(part)

    def _fixed(self, role: str, evaluator: Evaluator, encode: EncodeTexts | None) -> dict[str, Tensor]:
        from safetensors import safe_open

        wanted, heads = list(evaluator.fixed_texts()), sorted(evaluator.reads().text)
        path = min(self.folder.glob("texts-*.safetensors"), default=None)
        if not wanted or (path is None and encode is None):
            return {}
        if path is not None:
            with safe_open(path, framework="pt") as file:
                saved = json.loads(file.metadata()["strings"])["texts"].get(role, [])
                other = [head for head in heads if f"{role}/{head}" not in set(file.keys())]
                if saved == wanted and not other:
                    return {head: file.get_tensor(f"{role}/{head}") for head in heads}
        else:
            saved, other = [], []
        if encode is not None:
            return {head: encode(wanted, head) for head in heads}
        if saved == wanted:
            raise ConfigError(
                f"The texts of evaluator '{role}' were not saved through text head '{other[0]}'. Run predict again."
            )
        new = next((text for text in wanted if text not in saved), "their order")
        raise ConfigError(
            f"Evaluator '{role}' had other texts when {self.folder} was written: {new}. Run predict again."
        )

    def _load(self, part: str) -> tuple[SavedEncoded, Batch]:
        from safetensors import safe_open

        with safe_open(self.folder / part, framework="pt") as file:
            strings = json.loads(file.metadata()["strings"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        groups: dict[str, dict[str, Tensor]] = {"image": {}, "text": {}, "encoded": {}, "batch": {}}
        for name, tensor in tensors.items():
            kind, rest = name.split("/", 1)
            groups[kind][rest] = tensor
        count, nothing = len(strings["texts"]), torch.zeros(0, dtype=torch.int64)
        empty = {
            "volume": [],
            "tokens": nothing.new_zeros((count, 0)),
            "token_mask": torch.zeros(count, 0, dtype=torch.bool),
        }
        encoded = SavedEncoded(
            heads=_NoHeads(),
            readouts={},
            text=torch.zeros(count, 0),
            planned=nothing,
            planned_text=nothing,
            image_rows={(pair.split("/")[0], pair.split("/")[1]): rows for pair, rows in groups["image"].items()},
            text_rows=groups["text"],
            **groups["encoded"],
        )
        return encoded, cast(Batch, {**strings, **groups["batch"], **empty})

    def _parts(self) -> list[str]:
        return sorted({part for part, _ in self._place.values()})

    def _indexes(self) -> list[Path]:
        return sorted(self.folder.glob("index-*.parquet"))

    def _tables(self) -> list[dict[str, list[Any]]]:
        import pyarrow.parquet as pq

        return [pq.read_table(path).to_pydict() for path in self._indexes()]


def _with_fixed(encoded: SavedEncoded, fixed: Mapping[str, Tensor]) -> SavedEncoded:
    count, own = max((len(rows) for rows in fixed.values()), default=0), len(encoded.text)
    joined = {
        head: torch.cat([rows, fixed[head]]) if head in fixed else rows for head, rows in encoded.text_rows.items()
    }
    planned = torch.arange(count)
    return replace(
        encoded, text=torch.zeros(own + count, 0), text_rows=joined, planned=planned, planned_text=planned + own
    )
