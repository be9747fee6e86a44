"""Fixed sentences of an evaluator and the ensembles that they form."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.functional.ranks import fixed_scores
from ctgrounding.types import Encoded


class Ensembles:
    """Groups of sentences, each group one anchor: the normalised mean of its unit embeddings.

    Args:
        groups: Sentences of each group; repeats between groups are encoded once.

    Examples:
        >>> Ensembles([("A cyst.", "Cyst seen."), ("A cyst.",)]).texts
        ('A cyst.', 'Cyst seen.')
    """

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.texts = tuple(dict.fromkeys(text for group in groups for text in group))
        place = {text: number for number, text in enumerate(self.texts)}
        self._groups = [[place[text] for text in group] for group in groups]

    def anchors(self, encoded: Encoded, head: str, offset: int = 0) -> Float[Tensor, "A M"]:
        """Embeddings of the groups.

        Args:
            encoded: With ``planned_text`` pointing at the evaluator's fixed texts.
            head: Text head.
            offset: Place of this object's first text among the evaluator's fixed texts.

        Raises:
            BatchError: If not all of the texts were encoded.
        """
        row = dict(zip(encoded.planned.tolist(), encoded.planned_text.tolist(), strict=True))
        missing = [text for place, text in enumerate(self.texts) if offset + place not in row]
        if missing:
            raise BatchError(
                f"The fixed text '{missing[0]}' was not encoded. An evaluator needs all of its fixed texts."
            )
        places = [row[offset + place] for place in range(len(self.texts))]
        single = encoded.texts(torch.tensor(places, dtype=torch.int64, device=encoded.text.device), head)
        if not self._groups:
            return single
        means = torch.stack([single[group].mean(0) for group in self._groups])
        return torch.nn.functional.normalize(means, dim=1)


def about_organ(templates: Sequence[str], organ: str, setting: str) -> list[str]:
    """Sentences about an organ: templates with its name for ``{organ}``.

    Args:
        templates: Sentences with ``{organ}``.
        organ: Its spoken name.
        setting: What the templates are called in a configuration, for the message.

    Raises:
        ConfigError: If a template lacks ``{organ}``.

    Examples:
        >>> about_organ(["nothing in the {organ}"], "spleen", "negative")
        ['nothing in the spleen']
    """
    if without := [template for template in templates if "{organ}" not in template]:
        raise ConfigError(f"{setting} has '{without[0]}', which does not name the organ. Write {{organ}} in it.")
    return [template.replace("{organ}", organ) for template in templates]


def cosines(rows: Float[Tensor, "R M"], anchors: Float[Tensor, "A M"]) -> Float[Tensor, "R A"]:
    """Cosines in float32 on the host, the same bits in whatever batch a row comes.

    Raises:
        BatchError: If an embedding is not finite: compared with anything it would pass for the best.
    """
    scores = fixed_scores(rows.detach().float().cpu(), anchors.detach().float().cpu())
    if not bool(torch.isfinite(scores).all()):
        raise BatchError("An embedding is not finite, so its scores mean nothing. Find what made it so.")
    return scores
