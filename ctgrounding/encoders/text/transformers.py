"""Any text encoder of ``transformers``, by name or local folder, frozen, with LoRA or whole."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ctgrounding.encoders.lora import Lora, check_lora, check_targets
from ctgrounding.encoders.text.base import Pooling, TokenAttention, Tokenizer, pool
from ctgrounding.encoders.text.tuning import TunedText, Tuning, check_tuning
from ctgrounding.errors import ConfigError

_ORIGINS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")
"""Keys under which transformers notes where files came from."""


class TransformersTokenizer(Tokenizer):
    """The tokenizer that belongs to a ``transformers`` model, with the marks that it adds itself.

    Args:
        model: Name on the Hugging Face hub, or a local folder.
        context_length: Most tokens of a text, marks included.

    Raises:
        ConfigError: If there is no such tokenizer, or the context has room for its marks alone.
    """

    def __init__(self, model: str, context_length: int) -> None:
        marks = int(_tokenizer(model).num_special_tokens_to_add())
        if context_length <= marks:
            raise ConfigError(
                f"A text of '{model}' has {marks} marks and a token at least, but context_length is {context_length}."
            )
        self.model = model
        self.context_length = context_length
        pad = _tokenizer(model).pad_token_id
        self.pad_id = 0 if pad is None else int(pad)

    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids, cut to the context length with the marks kept."""
        ids = _tokenizer(self.model)(text, truncation=True, max_length=self.context_length)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)

    def count(self, text: str) -> int:
        """Number of tokens and marks before any cut."""
        return len(_tokenizer(self.model)(text, truncation=False, verbose=False)["input_ids"])


class TransformersText(TunedText):
    """A pretrained encoder from ``transformers.AutoModel``.

    Args:
        model: Name on the Hugging Face hub, or a local folder, which needs no network.
        pooling: ``mean`` over tokens, ``first`` (BERT's mark), ``last`` (decoders such as Qwen3-Embedding), or
            ``attention`` by a learned query, which a frozen tower's vectors learn too.
        tuning: ``frozen`` (no gradient and no dropout), ``lora`` or ``full``.
        lora: Adapters of ``lora``.
        context_length: Most tokens of a text; longer ones are cut.
        bucket_ratio: Longest over shortest text of a pass.
        cache: Folder that keeps the vectors of a frozen tower, by its weights and by text; a text comes back as it
            was first encoded, whose last digits depend on the texts beside it.
        pretrained: Whether the model's weights are read. Without them it is random, for weights that come otherwise.

    Raises:
        ConfigError: If the model is in no folder and cannot be fetched, reads less than ``context_length``, or
            has no module that LoRA targets; if a cache is asked for vectors that are trained, or ``lora`` is given
            where ``tuning`` is another.
    """

    def __init__(
        self,
        model: str,
        pooling: Pooling = "mean",
        tuning: Tuning = "lora",
        lora: Lora | None = None,
        context_length: int = 512,
        bucket_ratio: float = 1.5,
        cache: str | None = None,
        pretrained: bool = True,
    ) -> None:
        check_tuning(tuning, lora)
        if cache is not None and (tuning != "frozen" or pooling == "attention"):
            raise ConfigError(
                f"A text cache keeps vectors that never change, but tuning is {tuning} and pooling {pooling}. "
                "Freeze the tower and pool by mean, first or last, or remove cache."
            )
        tower = _tower(model, pretrained)
        limit = _most_tokens(tower)
        if limit is not None and context_length > limit:
            raise ConfigError(
                f"Text model '{model}' reads {limit} tokens; context_length is {context_length}. Lower it."
            )
        width = int(tower.config.hidden_size)
        super().__init__(tower, width, TransformersTokenizer(model, context_length), tuning, bucket_ratio)
        self.model = model
        self.pooling = pooling
        unused = getattr(tower, "pooler", None)
        if isinstance(unused, nn.Module):
            unused.requires_grad_(False)
        if tuning == "lora":
            self.tower = _with_adapters(model, tower, lora or Lora())
        self.attention = TokenAttention(self.width) if pooling == "attention" else None
        if cache is not None:
            self.keep_vectors(cache)

    @property
    def settings(self) -> tuple[object, ...]:
        """Pooling and the tower's configuration."""
        config: Any = self.tower.config
        return self.pooling, config.to_json_string()

    def encode(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row, without gradient where the tower is frozen."""
        with self.gradient():
            states: Tensor = self.tower(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return pool(states, mask, self.pooling) if self.attention is None else self.attention(states, mask)


def _with_adapters(model: str, tower: nn.Module, lora: Lora) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    check_lora(lora)
    ends = sorted({name.rpartition(".")[2] for name, part in tower.named_modules() if isinstance(part, nn.Linear)})
    if lora.targets is not None:
        check_targets([name for name, _ in tower.named_modules()], lora.targets, f"'{model}'", ends)
    targets = None if lora.targets is None else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    try:
        with warnings.catch_warnings():  # peft reads a property that transformers 5 renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            adapted: nn.Module = get_peft_model(tower, config)
    except ValueError as error:
        what = "knows no usual targets for" if targets is None else f"cannot adapt {targets} of"
        raise ConfigError(
            f"peft {what} '{model}'. Set lora.targets to some of its linear maps, which are named {ends}."
        ) from error
    return adapted


def _most_tokens(tower: Any) -> int | None:  # noqa: ANN401 - transformers is not typed
    """Tokens that a tower has positions for; RoBERTa's kin count them from behind the padding's number."""
    positions = getattr(tower.config, "max_position_embeddings", None)
    before = getattr(getattr(tower, "embeddings", None), "padding_idx", None)
    return None if positions is None else int(positions) - (0 if before is None else int(before) + 1)


def write_text_folder(encoder: TransformersText, folder: Path) -> None:
    """Write a tower's configuration and its tokenizer, without weights and without where they came from.

    Args:
        encoder: The text encoder.
        folder: A folder to make; ``TransformersText(FOLDER, pretrained=False)`` has the same modules.
    """
    tower: Any = encoder.tower
    folder.mkdir(exist_ok=True)
    tower.config.save_pretrained(folder)
    _tokenizer(encoder.model).save_pretrained(folder)
    for file in folder.glob("*config.json"):
        held = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: value for name, value in held.items() if name not in _ORIGINS}
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _tower(model: str, pretrained: bool) -> Any:  # noqa: ANN401 - transformers is not typed
    from transformers import AutoConfig, AutoModel

    try:
        if not pretrained:
            return AutoModel.from_config(AutoConfig.from_pretrained(model))
        return AutoModel.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _not_there(model) from error


@cache
def _tokenizer(model: str) -> Any:  # noqa: ANN401 - transformers is not typed
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _not_there(model) from error
    if len(found) <= len(found.all_special_ids):  # transformers makes one without words where the files are missing
        raise ConfigError(
            f"Text model '{model}' has no tokenizer files, so every text would be without words. Put those of the "
            "published model (tokenizer.json, tokenizer_config.json) beside its config.json."
        )
    return found


def _not_there(model: str) -> ConfigError:
    return ConfigError(
        f"Text model '{model}' is neither a folder with a transformers model nor in the local Hugging Face cache, and "
        f"could not be fetched. Fetch it where there is a network (hf download {model}) and name the folder."
    )
