"""The Swin transformer of MONAI's SwinUNETR."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.image.attention import head_width
from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError


class SwinEncoder(CroppedEncoder):
    """Shifted windows of attention and merging of cells, with the map of one stage.

    Stage 0 is the patch embedding, of 2 voxels a cell (a strided convolution of MONAI's); each further stage
    doubles the cell and the channels. Windows are laid out from the start of a scan's own crop.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        width: Channels of stage 0.
        depths: Blocks of each of the four stages.
        heads: Attention heads of each; divide its channels.
        window: Cells of an attention window along every axis.
        stage: Stage that gives the map, 1 to 4; later ones are not made.
        use_checkpoint: Recompute blocks in backward to save memory; this architecture needs much.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If there is no such stage, or heads do not divide channels.

    Examples:
        >>> encoder = SwinEncoder(spacing_mm=(1.5, 1.5, 1.5), width=12, stage=2, window=2)
        >>> dense = encoder(torch.zeros(1, 16, 24, 32), torch.tensor([[[0, 16], [0, 24], [0, 32]]]))
        >>> dense.map.shape, encoder.axial_mm
        (torch.Size([1, 48, 2, 3, 4]), 12.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5),
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        stage: int = 2,
        use_checkpoint: bool = False,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        if not 1 <= stage <= 4 or len(depths) != 4 or len(heads) != 4:
            raise ConfigError(
                f"SwinEncoder has four stages, each with its depth and heads, and gives one of 1 to 4; stage is "
                f"{stage}, depths are {list(depths)}, heads {list(heads)}."
            )
        check_counts("SwinEncoder", window=window)
        for place, count in enumerate(heads):
            head_width(width * 2**place, count)
        cell = 2 ** (stage + 1)
        super().__init__(
            width=width * 2**stage,
            spacing_mm=spacing_mm,
            cell_vox=(cell,) * 3,
            align_vox=(cell,) * 3,
            windows=windows,
            axial_mm=axial_mm,
        )
        from monai.networks.nets.swin_unetr import SwinTransformer

        whole = SwinTransformer(
            in_chans=len(self.windows),
            embed_dim=width,
            window_size=(window,) * 3,
            patch_size=(2, 2, 2),
            depths=list(depths),
            num_heads=list(heads),
            downsample="mergingv2",
            use_checkpoint=use_checkpoint,
            spatial_dims=3,
        )
        self.embed: nn.Module = whole.patch_embed
        made = (whole.layers1, whole.layers2, whole.layers3, whole.layers4)
        self.stages = nn.Sequential(*(layers[0] for layers in made[:stage]))

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """The map of one stage, with normed channels as SwinUNETR's decoder gets it."""
        cells: Tensor = self.stages(self.embed(self.windows(volume_hu)))
        return functional.layer_norm(torch.movedim(cells, 1, -1), [self.width])
