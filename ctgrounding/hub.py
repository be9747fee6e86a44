"""Exported models in ``transformers``: after ``import ctgrounding.hub``, ``AutoModel`` reads their folders.

Nothing is fetched, nothing is unpickled, and no code of the folder is run. Without that import the folder's own
``modeling_ctgrounding.py`` leads here, if the caller gives ``trust_remote_code=True``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ctgrounding.errors import CheckpointError, ConfigError
from ctgrounding.exported import ImageTower, tower_outputs, write_folder
from ctgrounding.exported.folder import MODEL_TYPE, describe, read_weights
from ctgrounding.model import build

_NOT_NEEDED = frozenset(
    {
        *(
            "adapter_kwargs",
            "cache_dir",
            "code_revision",
            "force_download",
            "local_files_only",
            "revision",
            "subfolder",
        ),
        *("token", "trust_remote_code", "use_safetensors", "weights_only", "low_cpu_mem_usage"),
    }
)
"""What ``AutoModel`` passes on or users habitually give, and which makes no difference for a folder."""


class CTGroundingConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """``config.json`` of an exported folder.

    Attributes:
        ctgrounding: What :class:`ctgrounding.exported.Description` holds, as plain values.
    """

    model_type = MODEL_TYPE

    def __init__(self, ctgrounding: Mapping[str, Any] | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        self.ctgrounding = dict(ctgrounding or {})
        super().__init__(**kwargs)


@dataclass(frozen=True)
class CTGroundingOutput:
    """What a call gives.

    Attributes:
        image_embeds: Embeddings of volumes by ``READOUT.HEAD``, as in :class:`ctgrounding.exported.ImageTower`.
        text_embeds: Embeddings of texts by head.
    """

    image_embeds: dict[str, Tensor] | None = None
    text_embeds: dict[str, Tensor] | None = None


class CTGroundingModel(PreTrainedModel):  # type: ignore[misc]
    """A trained model behind the interface of ``transformers``.

    For scans as files, depth in mm and search use ``ctgrounding.load(FOLDER)``, which reads the same folder.

    Args:
        config: Of an exported folder; the folder that it was read from holds the tokenizer.
    """

    config_class = CTGroundingConfig
    main_input_name = "image_hu"

    def __init__(self, config: CTGroundingConfig) -> None:
        super().__init__(config)
        self.description = describe(Path(config.name_or_path), config.ctgrounding)
        self.encoder = build(self.description.placed(Path(config.name_or_path)))
        heads = self.description.encoder["heads"]["image"]
        self._uses = tower_outputs(self.encoder, heads, self.description.locating)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every part as its own class made it."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: CTGroundingConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: torch.device | str | None = None,
        **kwargs: Any,  # noqa: ANN401 - what transformers passes on
    ) -> "CTGroundingModel":
        """Read an exported folder, weights of every part or not at all.

        Args:
            pretrained_model_name_or_path: The folder.
            config: Its configuration, if it was read already.
            dtype: Type to bring the weights to; as saved if None or ``auto``.
            device_map: One device for the whole model.
            **kwargs: What makes no difference for a folder; anything else is refused.

        Raises:
            CheckpointError: If it is no such folder, or it is damaged.
            ConfigError: If an option is given that an exported model does not know.
        """
        unknown = sorted(name for name in kwargs if name not in _NOT_NEEDED and not name.startswith("_"))
        if unknown:
            raise ConfigError(f"An exported model takes dtype and device_map, but not {', '.join(unknown)}. Remove it.")
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            raise CheckpointError(f"There is no folder {folder}. Fetch it first (hf download) and name the folder.")
        model = cls(config or CTGroundingConfig.from_pretrained(folder))
        try:
            model.encoder.load_state_dict(read_weights(folder))
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: its weights do not fit its config.json. Export it again.") from error
        try:
            if dtype not in (None, "auto"):
                model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
            if device_map is not None:
                model.to(device_map)
        except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"dtype={dtype!r} and device_map={device_map!r} cannot be used here ({reason}). "
                "Give a floating point type and one device, such as 'cuda:0'."
            ) from error
        model.eval()
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # noqa: ANN401
        """Write the folder anew, without a model card; ``kwargs`` of ``transformers`` make no difference."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_folder(self.encoder, self.description, folder)

    def forward(
        self,
        image_hu: Shaped[Tensor, "b D H W"] | None = None,
        valid_box: Int64[Tensor, "b 3 2"] | None = None,
        input_ids: Int64[Tensor, "T L"] | None = None,
        attention_mask: Int64[Tensor, "T L"] | Bool[Tensor, "T L"] | None = None,
    ) -> CTGroundingOutput:
        """Embed volumes, texts, or both.

        Args:
            image_hu: Volumes in HU on the model's voxel size, axes inferior to superior, posterior to anterior, left to
                right; padding is -1024.
            valid_box: Half-open box of real voxels of each; the whole volume if None.
            input_ids: Token rows of :meth:`tokenize`.
            attention_mask: Which tokens are real; all if None.

        Raises:
            ConfigError: If there is nothing to embed.
        """
        if image_hu is None and input_ids is None:
            raise ConfigError("There is nothing to embed: give image_hu, input_ids, or both.")
        images = None if image_hu is None else self._images(image_hu, valid_box)
        return CTGroundingOutput(images, None if input_ids is None else self._texts(input_ids, attention_mask))

    def tokenize(self, texts: str | Sequence[str]) -> dict[str, Tensor]:
        """Token rows of texts as :meth:`forward` takes them: ``input_ids`` and ``attention_mask``."""
        tokenizer = self.encoder.text.tokenizer
        rows = [tokenizer(text) for text in ([texts] if isinstance(texts, str) else texts)]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        return {"input_ids": tokens.to(self.device), "attention_mask": mask.long().to(self.device)}

    def _images(self, image_hu: Tensor, valid_box: Tensor | None) -> dict[str, Tensor]:
        if valid_box is None:
            whole = torch.tensor([[0, side] for side in image_hu.shape[1:]], device=image_hu.device)
            valid_box = whole.expand(image_hu.shape[0], 3, 2)
        found: dict[str, Tensor] = ImageTower(self.encoder, self._uses)(image_hu, valid_box)
        return found

    def _texts(self, tokens: Tensor, mask: Tensor | None) -> dict[str, Float[Tensor, "T M"]]:
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        vectors = self.encoder.encode_tokens(tokens, real)
        return {name: self.encoder.heads.text(name, vectors) for name in self.encoder.heads.text_widths}


AutoConfig.register(MODEL_TYPE, CTGroundingConfig, exist_ok=True)
AutoModel.register(CTGroundingConfig, CTGroundingModel, exist_ok=True)
