"""The text tower of an open_clip model with its own tokenizer, pooling and projection."""

import json
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ctgrounding.encoders.lora import Lora, adapt
from ctgrounding.encoders.open_clip_models import open_clip_model, weights_of, without_root_handler
from ctgrounding.encoders.text.base import Tokenizer, pool
from ctgrounding.encoders.text.tuning import TunedText, Tuning, check_tuning
from ctgrounding.errors import ConfigError


class OpenClipModelTokenizer(Tokenizer):
    """The tokenizer of an open_clip model, without its padding.

    Args:
        model: As of :class:`OpenClipModelText`.

    Examples:
        >>> OpenClipModelTokenizer("ViT-B-32")("No pleural effusion.").tolist()
        [49406, 871, 926, 33948, 1490, 9364, 269, 49407]
    """

    def __init__(self, model: str) -> None:
        self.model = model
        made = _tokenizer(model)
        self.context_length = int(made.context_length)
        words = getattr(made, "tokenizer", None)
        self.pad_id = 0 if words is None else int(words.pad_token_id)

    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids, cut to the context length as open_clip does."""
        (row,) = _tokenizer(self.model)(text)
        real = (row != self.pad_id).nonzero()
        return row[: int(real.max()) + 1 if len(real) else 1].clone()  # type: ignore[no-any-return]

    def count(self, text: str) -> int:
        """Number of tokens and marks before any cut."""
        made = _tokenizer(self.model)
        words = getattr(made, "tokenizer", None)
        if words is None:
            return len(made.encode(text)) + 2
        return len(words(made.clean_fn(text), verbose=False)["input_ids"])


class OpenClipModelText(TunedText):
    """The text tower of any open_clip model: its vectors are those of ``model.encode_text``.

    Its context is short, 77 tokens for CLIP; around it ``SentenceText`` encodes a report sentence by sentence.

    Args:
        model: Name in open_clip, such as ``ViT-B-32``; ``local-dir:FOLDER`` for a folder with
            ``open_clip_config.json``, weights and tokenizer; or ``hf-hub:OWNER/NAME``.
        pretrained: Tag or file of the weights of a model by name, or true to read those of a folder; false for random
            ones.
        tuning: ``frozen`` (no gradient and no dropout), ``lora`` or ``full``.
        lora: Adapters of ``lora``; CLIP's own towers have linear maps ``c_fc`` and ``c_proj`` to name as ``targets``.
        cache: Folder that keeps the vectors of a frozen tower, by its weights and by text.

    Raises:
        ConfigError: If there is no such model, its weights or its tokenizer cannot be had, ``lora`` finds nothing to
            adapt or is given where ``tuning`` is another, or a cache is asked for vectors that are trained.

    Examples:
        >>> encoder = OpenClipModelText("ViT-B-32")
        >>> tokens = encoder.tokenizer("Cyst in the left kidney.")[None]
        >>> encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape
        torch.Size([1, 512])
    """

    def __init__(
        self,
        model: str,
        pretrained: bool | str = False,
        tuning: Tuning = "full",
        lora: Lora | None = None,
        cache: str | None = None,
    ) -> None:
        check_tuning(tuning, lora)
        if cache is not None and tuning != "frozen":
            raise ConfigError(
                f"A text cache keeps vectors that never change, but tuning is {tuning}. Freeze the tower, or remove "
                "cache."
            )
        tower = open_clip_model(model, pretrained).text
        tower.output_tokens = False
        tokenizer = OpenClipModelTokenizer(model)
        with torch.no_grad():
            width = tower(torch.full((1, tokenizer.context_length), tokenizer.pad_id)).shape[1]
        super().__init__(tower, width, tokenizer, tuning)
        self._sees_padding = not _is_clip(tower, _tokenizer(model))
        if self._sees_padding:
            self.bucket_ratio = float("inf")  # all rows are as long as the context
        if tuning == "lora":
            adapt(tower, lora or Lora())
        self._model = model
        if cache is not None:
            self.keep_vectors(cache)

    @property
    def settings(self) -> tuple[object, ...]:
        """The configuration of the whole model, since activations are set beside its towers."""
        from open_clip.factory import get_model_config

        return (json.dumps(get_model_config(self._model), sort_keys=True),)

    def encode(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row, without gradient where the tower is frozen."""
        with self.gradient():
            return self._whole(tokens, mask) if self._sees_padding else self._causal(tokens, mask)

    def _whole(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """As open_clip does: rows are filled to the context, whose padding some towers attend to."""
        rows = tokens.new_full((len(tokens), self.tokenizer.context_length), self.tokenizer.pad_id)
        rows[:, : tokens.shape[1]] = tokens.masked_fill(~mask, self.tokenizer.pad_id)
        return self.tower(rows)  # type: ignore[no-any-return]

    def _causal(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """The same numbers from shorter rows: the end mark sees nothing behind it."""
        tower: Any = self.tower
        length = tokens.shape[1]
        states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        states = tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask[:length, :length]))
        pooled = pool(states, mask, "last")
        projection = tower.text_projection
        if projection is None:
            return pooled
        found: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return found


def _is_clip(tower: Any, tokenizer: Any) -> bool:  # noqa: ANN401 - open_clip is not typed
    """Whether it is CLIP's tower, in which nothing behind the end mark reaches a text's vector."""
    from open_clip.tokenizer import SimpleTokenizer

    is_causal = getattr(tower, "attn_mask", None) is not None and tower.cls_emb is None and not tower.use_pad_mask
    return is_causal and tower.pool_type == "argmax" and isinstance(tokenizer, SimpleTokenizer)


@cache
def _tokenizer(model: str) -> Any:  # noqa: ANN401 - open_clip is not typed
    from open_clip import get_tokenizer

    with weights_of(f"the tokenizer of open_clip's '{model}'"), without_root_handler():
        return get_tokenizer(model)
