"""Which sentence belongs to which organ."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ctgrounding import distributed, label_sets
from ctgrounding.errors import ConfigError
from ctgrounding.functional.contrast import RowIds
from ctgrounding.functional.softmax_contrast import softmax_contrast
from ctgrounding.objectives.base import Objective, check_heads, check_readout
from ctgrounding.objectives.organ_statements import Statements, pair_statements
from ctgrounding.objectives.organ_texts import OrganTexts
from ctgrounding.types import ORGAN_IDS, Batch, Encoded, EncoderDims, Term


class OrganGrounding(Objective):
    """Anatomy and diagnosis alignment of mask-pooled organs after CT-GLIP (arXiv 2404.15272), two terms.

    ``anatomy``: softmax over the names of all organs visible in the step, on any rank, for each visible organ.
    A name is one text, so the same organ of another scan is never a negative.

    ``diagnosis``: softmax for each statement about a visible organ, against statements of all ranks about the
    same organ and ``negatives`` entries of an abnormality dictionary. Not opposed are: two normal organs; a
    text that the organ's own report has too; other statements about the same organ; an organ and an entry of the
    dictionary that may be true of it. A statement with nothing to tell it from weighs nothing.

    The paper's abstracts name the two alignments, mask-average pooling and the dictionary. Everything else is
    our choice: the wording of names and of the normal sentence, the temperature, one direction (organ to
    text), one element a statement, ``visible_fraction``, and these two. Normal statements about an organ that
    the same report also calls abnormal are left out, since "normal in size" does not make it normal. And an
    organ that the report does not mention says nothing by default, since a report need not mention what it did
    not look at; ``unmentioned: normal`` takes it for normal where the scan has any organ statement.

    Args:
        dims: Sizes of the encoders and heads.
        image_head: Head of the organs.
        text_head: Head of names, statements and dictionary.
        temperature: Divides the cosines; used where ``logit`` is null.
        logit: Declared logit whose learned scale takes the temperature's place.
        label_set: Organs that the label maps hold.
        name_text: Text of an organ's name; ``{organ}`` stands for it.
        normal_text: Text that an organ called normal matches besides its own statements; null for none.
        unmentioned: What an organ without a statement is: ``ignore`` or ``normal``.
        visible_fraction: Least share of an organ that the crop must show, in both terms.
        dictionary: YAML or JSON file of abnormal sentences by organ, made from training text only, as
            ``ctgrounding dictionary`` writes it. A plain list of sentences does too; then nothing tells which of them
            may be true of an organ with a finding, so only organs without one are opposed to them.
        negatives: Entries drawn from it for each organ that is spoken of in a step.
        anatomy_weight: Factor of the term ``anatomy``.
        diagnosis_weight: Factor of the term ``diagnosis``.

    Raises:
        ConfigError: If a head, the readout ``organ``, the label set or the dictionary does not fit, or a number is out
            of range.

    Examples:
        >>> from ctgrounding.testing.tiny import tiny_encoded_and_batch, with_fixed_texts
        >>> encoded, batch, dims = tiny_encoded_and_batch()
        >>> grounding = OrganGrounding(dims)
        >>> sorted(grounding(with_fixed_texts(encoded, grounding, batch), batch))
        ['anatomy', 'diagnosis']
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {
            "organ",
            "organ_voxels",
            "texts",
            "organ_text",
            "organ_text_scan",
            "organ_text_class",
            "organ_text_abnormal",
            "organ_finding",
            "organ_finding_scan",
            "organ_finding_class",
            "scan_id",
        }
    )

    def __init__(
        self,
        dims: EncoderDims,
        *,
        image_head: str = "main",
        text_head: str = "main",
        temperature: float = 0.07,
        logit: str | None = None,
        label_set: str = "total_v2",
        name_text: str = "this is a {organ} in the CT scan",
        normal_text: str | None = "no evident abnormality in the {organ}",
        unmentioned: Literal["ignore", "normal"] = "ignore",
        visible_fraction: float = 0.5,
        dictionary: str | None = None,
        negatives: int = 8,
        anatomy_weight: float = 1.0,
        diagnosis_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_heads(dims, image_head, text_head)
        check_readout(dims, "organ")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature is {temperature}, but must be above 0 and finite.")
        if not 0 <= visible_fraction <= 1:
            raise ConfigError(f"visible_fraction is {visible_fraction}, but a share lies between 0 and 1.")
        if negatives < 0:
            raise ConfigError(f"negatives is {negatives}, but must be at least 0.")
        for name, weight in (("anatomy_weight", anatomy_weight), ("diagnosis_weight", diagnosis_weight)):
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{name} is {weight}, but a weight is a finite number from 0 on.")
        if unmentioned not in ("ignore", "normal") or (unmentioned == "normal" and normal_text is None):
            raise ConfigError(
                f"unmentioned is '{unmentioned}', but must be ignore, or normal together with a normal_text."
            )
        self.image_head, self.text_head = image_head, text_head
        self.temperature, self.logit = temperature, logit
        self.unmentioned, self.visible_fraction, self.negatives = unmentioned, visible_fraction, negatives
        self.anatomy_weight, self.diagnosis_weight = anatomy_weight, diagnosis_weight
        self.organ_texts = OrganTexts.of(label_sets.load(label_set), name_text, normal_text, dictionary)

    def fixed_texts(self) -> Sequence[str]:
        """Names, normal sentences, then dictionary entries."""
        return self.organ_texts.texts

    def plan(self, batch: Batch, generator: torch.Generator) -> Int64[Tensor, "P"]:
        """Names of organs in the step's scans, normal sentences and drawn entries for organs spoken of."""
        drawn = self.organ_texts.draw(self.negatives, generator)
        seen = torch.zeros(2, ORGAN_IDS, dtype=torch.int64, device=batch["organ_text_class"].device)
        voxels = batch.get("organ_voxels")
        if voxels is not None:
            seen[0] = (voxels > 0).any(0)
        seen[1, batch["organ_text_class"]] = 1
        present, spoken_of = (distributed.sum_over_ranks(seen) > 0).cpu()
        if self.unmentioned == "normal":
            spoken_of = present
        return self.organ_texts.of_organs(present, spoken_of, drawn)

    def forward(self, encoded: Encoded, batch: Batch) -> dict[str, Term]:
        """The terms ``anatomy`` and ``diagnosis``."""
        organs = encoded.image("organ", self.image_head)
        known = self.organ_texts.is_known(encoded.organ_class)
        shown = known & (encoded.organ_visible >= self.visible_fraction)
        anatomy = self._anatomy(encoded, organs[shown], encoded.organ_class[shown])
        diagnosis = self._diagnosis(encoded, batch, organs, shown)
        return {
            "anatomy": Term(anatomy.total * self.anatomy_weight, anatomy.weight),
            "diagnosis": Term(diagnosis.total * self.diagnosis_weight, diagnosis.weight),
        }

    def _anatomy(self, encoded: Encoded, organs: Float[Tensor, "R M"], kinds: Int64[Tensor, "R"]) -> Term:
        shown = torch.bincount(kinds, minlength=ORGAN_IDS)
        candidates = distributed.deal(distributed.sum_over_ranks(shown).nonzero()[:, 0])
        names = encoded.texts(self.organ_texts.rows_of_names(encoded, candidates), self.text_head)
        image_ids, text_ids = RowIds(kinds), RowIds(candidates)
        return softmax_contrast(organs, names, self._scale(encoded, names), image_ids=image_ids, text_ids=text_ids)

    def _diagnosis(
        self, encoded: Encoded, batch: Batch, organs: Float[Tensor, "O M"], shown: Bool[Tensor, "O"]
    ) -> Term:
        statements = pair_statements(
            encoded, batch, shown, self.organ_texts, unmentioned_is_normal=self.unmentioned == "normal"
        )
        entries = self._dealt_entries(encoded, statements)
        rows = torch.cat([statements.text, self.organ_texts.rows(encoded, entries)])
        texts = encoded.texts(rows, self.text_head)
        image_ids, text_ids = statements.ids(self.organ_texts.kinds(entries), self.organ_texts.keys(entries))
        return softmax_contrast(
            organs[statements.organ], texts, self._scale(encoded, texts), image_ids=image_ids, text_ids=text_ids
        )

    def _dealt_entries(self, encoded: Encoded, statements: Statements) -> Int64[Tensor, "P"]:
        """This rank's share of the step's dictionary entries, for organs that have a statement on any rank."""
        entries = self.organ_texts.entries(encoded.planned.to(statements.kind.device))
        used = distributed.sum_over_ranks(torch.bincount(statements.kind, minlength=ORGAN_IDS)) > 0
        return distributed.deal(entries[used[self.organ_texts.kinds(entries)]])

    def _scale(self, encoded: Encoded, like: Tensor) -> Float[Tensor, ""]:
        if self.logit is None:
            return like.new_tensor(1 / self.temperature, dtype=torch.promote_types(like.dtype, torch.float32))
        return encoded.logit(self.logit)[0]
