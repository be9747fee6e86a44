"""Does an organ's embedding know the organ's name?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ctgrounding import label_sets
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.prompts import Ensembles, about_organ, cosines
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.functional.ranks import Ranks
from ctgrounding.types import Batch, Encoded


class OrganRecognition(Evaluator):
    """The name nearest to each visible organ, among the names of all organs that occur in the data.

    Chance is one in the number of these candidates, which stands beside the result. Equal scores share the
    places.

    Args:
        image_head: Head of the ``organ`` readout.
        text_head: Head of the names.
        templates: Sentences around a name, with ``{organ}``; several form an ensemble.
        label_set: Organ label set of the masks.
        min_visible: Least share of an organ that the scan must show, in [0, 1].
        resampling: Of the intervals, by patient.

    Raises:
        ConfigError: If the label set does not exist, a template lacks ``{organ}`` or the share is none.

    Examples:
        >>> OrganRecognition(templates=("{organ}",)).fixed_texts()[:2]
        ('spleen', 'right kidney')
    """

    requires: ClassVar[frozenset[str]] = frozenset({"patient", "organ"})

    def __init__(
        self,
        image_head: str = "organ",
        text_head: str = "organ",
        templates: Sequence[str] = ("{organ}",),
        label_set: str = "total_v2",
        min_visible: float = 0.0,
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        if not templates:
            raise ConfigError("OrganRecognition has no templates. Write for example '{organ}'.")
        if not 0.0 <= min_visible <= 1.0:
            raise ConfigError(f"min_visible is {min_visible}, but a share lies between 0 and 1.")
        self.image_head, self.text_head = image_head, text_head
        self.templates, self.label_set, self.min_visible = tuple(templates), label_set, min_visible
        self.resampling = resampling or Resampling()
        self._names = label_sets.load(label_set)
        self._labels = list(self._names)
        spoken = [label_sets.spoken(self._names[label]) for label in self._labels]
        self._prompts = Ensembles([about_organ(templates, name, "templates") for name in spoken])

    def fixed_texts(self) -> Sequence[str]:
        """The names of all organs of the label set."""
        return self._prompts.texts

    def reads(self) -> Reads:
        """The ``organ`` readout and the names."""
        return Reads(frozenset({("organ", self.image_head)}), frozenset({self.text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the organs that a batch shows.

        Raises:
            ConfigError: If a head or readout does not exist.
        """
        scores = cosines(encoded.image("organ", self.image_head), self._prompts.anchors(encoded, self.text_head))
        scan, organ = encoded.organ_scan.cpu(), encoded.organ_class.cpu()
        shown = (encoded.organ_visible.cpu() >= self.min_visible) & torch.isin(organ, torch.tensor(self._labels))
        keys = scan_keys(batch)
        self.rows.add(
            [keys[place] for place in scan[shown].tolist()],
            scores=scores[shown],
            organ=organ[shown],
            patient=batch["patient"].cpu()[scan[shown]],
        )

    def compute(self) -> dict[str, float]:
        """Share of organs whose own name is first, or among the first five, and the number of candidates."""
        table = self.rows.table()
        if not len(table):
            return {"organ_recognition/organs": 0.0}
        candidates, ranks = self._ranked(table)
        hits = torch.stack([ranks.hits(1), ranks.hits(5)], dim=1).numpy()
        interval = self.resampling.interval(weighted_means(hits), table.array("patient"))
        organ = table.array("organ")
        return {
            "organ_recognition/top1": float(interval.estimate[0]),
            **bounds("organ_recognition/top1", interval),
            "organ_recognition/top5": float(interval.estimate[1]),
            "organ_recognition/macro_top1": float(np.mean([hits[organ == label, 0].mean() for label in candidates])),
            "organ_recognition/candidates": float(len(candidates)),
            "organ_recognition/organs": float(len(table)),
        }

    def results(self) -> Mapping[str, Any]:
        """Hits a class and which names were taken for which."""
        table = self.rows.table()
        return {
            "title": "Organ recognition",
            "protocol": {
                "candidates": "names of all organs that occur in the evaluated data",
                "prompts": list(self.templates),
                "least visible share": self.min_visible,
                "intervals": self.resampling.described(),
            },
            "classes": self._class_rows(table) if len(table) else [],
            "cases": self._cases(table) if len(table) else [],
        }

    def _cases(self, table: Table) -> list[dict[str, Any]]:
        hits = self._ranked(table)[1].hits(1).numpy()[:, None]
        return [mean_cases("organ_recognition/top1", table, [""], hits, items=table.array("organ"))]

    def _class_rows(self, table: Table) -> list[dict[str, Any]]:
        candidates, ranks = self._ranked(table)
        own, hits = table.array("organ"), ranks.hits(1).numpy()
        columns = [self._labels.index(label) for label in candidates]
        taken = np.array(candidates)[table.array("scores")[:, columns].argmax(1)]
        rows = []
        for label in candidates:
            confused = Counter(self._names[other] for other in taken[own == label].tolist())
            rows.append(
                {
                    "name": self._names[label],
                    "organs": int((own == label).sum()),
                    "top1": float(hits[own == label].mean()),
                    "taken_for": dict(confused.most_common()),
                }
            )
        return rows

    def _ranked(self, table: Table) -> tuple[list[int], Ranks]:
        """Labels that occur, and where each organ's own stands among them."""
        organ, scores = table.tensors["organ"], table.tensors["scores"]
        candidates = sorted(set(organ.tolist()))
        columns = torch.tensor([self._labels.index(label) for label in candidates])
        among = scores[:, columns]
        own = torch.tensor([candidates.index(label) for label in organ.tolist()])[:, None]
        best = among.gather(1, own)
        return candidates, Ranks((among > best).sum(1), (among == best).sum(1) - 1)
