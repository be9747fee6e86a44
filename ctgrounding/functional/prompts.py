"""Yes/no findings as sentence pairs: which variant a scan is asked, and the loss of the answers."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding.types import UNKNOWN_LABEL


def text_keys(texts: Iterable[str]) -> Int64[Tensor, "T"]:
    """A number for each text, at least 0, equal on every rank and run for texts that differ in case or spaces only."""
    return torch.tensor([_text_key(text) for text in texts], dtype=torch.int64)


@lru_cache(maxsize=2**14)
def _text_key(text: str) -> int:
    digest = hashlib.blake2b(" ".join(text.split()).casefold().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_variants(key: int, rows: Int64[Tensor, "B"], questions: int, variants: int) -> Int64[Tensor, "B Q"]:
    """Which sentence pair each scan is asked for each question: uniform, and keyed rather than streamed.

    A draw depends on ``key``, the scan's number and the question alone, so it is the same on whichever
    rank and in whichever place the scan is.

    Args:
        key: Number of the step.
        rows: Number of each scan, as from :func:`text_keys`.
        questions: Number of questions.
        variants: Sentence pairs of a question.
    """
    numbers = torch.arange(questions, dtype=torch.int64, device=rows.device)
    mixed = _mix(_mix(rows + key)[:, None] + numbers)
    return mixed.remainder(variants)


def answer_loss(
    logits: Float[Tensor, "B Q"], labels: Int64[Tensor, "B Q"], positive_weight: Float[Tensor, "Q"]
) -> Float[Tensor, "B Q"]:
    """Binary cross-entropy of each answer, 0 where the label is unknown.

    ``-(w_q * y * log sigma(l) + (1 - y) * log(1 - sigma(l)))``, in float32 or wider.

    Args:
        logits: Logit of yes less logit of no.
        labels: 1, 0 or :data:`ctgrounding.types.UNKNOWN_LABEL`.
        positive_weight: Weight of a positive answer of each question.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    positive = -torch.nn.functional.logsigmoid(wide) * positive_weight.to(wide.dtype)
    negative = -torch.nn.functional.logsigmoid(-wide)
    loss = torch.where(labels == 1, positive, negative)
    return torch.where(labels == UNKNOWN_LABEL, 0.0, loss)


def positive_weights(label_counts: Int64[Tensor, "Q 2"], largest: float = 20.0) -> Float[Tensor, "Q"]:
    """``min(negatives / positives, largest)`` of each question; 1 for a question that has only one answer or none.

    Args:
        label_counts: Negatives and positives of each question in the training data.
        largest: Upper bound (20 in RadFinder, arXiv 2603.02026, which does not say what it does with a
            question without positives; a weight of 1 is our choice).
    """
    negatives, positives = label_counts.double().unbind(-1)
    ratio = (negatives / positives.clamp(min=1)).clamp(max=largest)
    return torch.where((positives > 0) & (negatives > 0), ratio, 1.0).float()


def _mix(values: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al., OOPSLA 2014); int64 wraps as it needs."""
    values = (values ^ _shifted(values, 30)) * -4658895280553007687
    values = (values ^ _shifted(values, 27)) * -7723592293110705685
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift keeps the sign."""
    return torch.bitwise_and(values >> bits, 2 ** (64 - bits) - 1)
