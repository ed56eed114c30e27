"""What a vision tower gives, whatever it is made of. The model knows its towers by this interface alone."""

from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.import_utils import is_torchdynamo_exporting


logger = logging.get_logger(__name__)


class VisionFeatures(NamedTuple):
    """What one pass of a tower gives: whichever was asked for."""

    dense: Tensor | None
    """`(batch, height, width, hidden)`, before the projection into the image-text space."""
    pooled: Tensor | None
    """`(batch, hidden)`: the image's global feature, before the projection."""
    stages: dict[str, Tensor]
    """Intermediate maps by their stage's name, `(batch, channels, height, width)`."""


class VisionTower:
    r"""
    Mixin of all vision towers. A tower is a [`PreTrainedModel`] that says how it gives dense features:

    * its `forward`: the dense map, the pooled feature and intermediate maps in one pass. Towers, their blocks and
      layers are always called, so that hooks (offloading, sharding) fire and layers put in their place (adapters,
      quantised ones) are used; nothing reads the weights of a layer that it could call;
    * [`~VisionTower.trainable_blocks`]: which parameters the dense path trains, block by block;
    * `stride`, `hidden_size`, `stage_channels` and `stage_strides`: the geometry of its maps;
    * `projection_bias`: whether the projection into the image-text space has a bias; `None` where the tower's features
      are in that space already.
    """

    projection_bias: ClassVar[bool | None] = False

    @property
    def stride(self) -> int:
        """Pixels of the image a cell of the dense map."""
        return self.config.patch_size

    @property
    def hidden_size(self) -> int:
        """Width of the features before the projection."""
        return self.config.hidden_size

    @property
    def stage_channels(self) -> list[int]:
        """Width of each intermediate map."""
        return [self.config.hidden_size] * self.config.num_hidden_layers

    @property
    def stage_strides(self) -> list[int]:
        """Pixels of the image a cell, for each intermediate map."""
        return [self.stride] * len(self.stage_channels)

    def make_projection(self, dim: int) -> nn.Module:
        """What takes the tower's features into an image-text space of width `dim`."""
        if self.projection_bias is not None:
            return nn.Linear(self.hidden_size, dim, bias=self.projection_bias)
        if dim != self.hidden_size:
            raise ValueError(
                f"`projection_dim` is {dim}, but a {self.config.model_type} of width {self.hidden_size} has no "
                f"projection: its features are in a space of {self.hidden_size} dimensions."
            )
        return nn.Identity()

    def forward(
        self, pixel_values: Tensor, dense: bool = True, pooled: bool = False, stages: Collection[str] = ()
    ) -> VisionFeatures:
        """
        Dense, pooled and intermediate features; they share all that can be shared.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Of any size; what does not fill a whole cell at the right and below is dropped.
            dense (`bool`, *optional*, defaults to `True`): whether to compute the dense map.
            pooled (`bool`, *optional*, defaults to `False`): whether to compute the global feature.
            stages (collection of `str`, *optional*): names of the intermediate maps to give.
        """
        raise NotImplementedError

    def trainable_blocks(self) -> list[list[nn.Parameter]]:
        """The parameters of each block that the dense path uses, first block first."""
        raise NotImplementedError

    def run_block(self, block: nn.Module, hidden_states: Tensor, *context: Any, **options: Any) -> Tensor:
        """A block's pass; a block that cannot be checkpointed by itself is so here."""
        return block(hidden_states, *context, **options)

    def whole_cells(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The image cut to whole cells, in the tower's dtype, and how many there are: `(height, width)`."""
        if pixel_values.ndim != 4:
            raise ValueError(f"`pixel_values` is (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        sides = tuple(pixel_values.shape[-2:])
        height, width = (side // self.stride for side in sides)
        if height < 1 or width < 1:
            raise ValueError(f"An image of {sides} pixels holds no patch of {self.stride}.")
        # Not while a graph is drawn: it would then be one for sides with a remainder, or for those without.
        if not torch.compiler.is_compiling() and (height * self.stride, width * self.stride) != sides:
            logger.warning_once(
                f"Image sides {sides} are no multiples of the patch size {self.stride}: the remainder at the right "
                "and below is dropped, so boxes are fractions of what is left."
            )
        # The dtype of a tower is that of its first floating-point weight: a quantised layer stores integers.
        pixel_values = pixel_values[..., : height * self.stride, : width * self.stride].to(self.dtype)
        return pixel_values, (height, width)

    def on_the_graph(self, hidden_states: Tensor, first: nn.Module) -> Tensor:
        """
        What enters the first block, so that checkpointing can be re-entrant: that gives the parameters of a block no
        gradient unless its input has one, and behind a frozen embedding or stem it has none.
        """
        owner = first if hasattr(first, "gradient_checkpointing") else self
        if owner.gradient_checkpointing and owner.training and not hidden_states.requires_grad:
            options = getattr(owner._gradient_checkpointing_func, "keywords", {})
            if torch.is_grad_enabled() and options.get("use_reentrant", True):
                return hidden_states.detach().requires_grad_()
        return hidden_states


class TransformerTower(VisionTower):
    r"""
    Mixin of the vision transformers. Every block but the last runs as the tower was trained. The last takes the dense
    path for the patches, `block(hidden_states, ..., dense=True)`, and the full one for the pooled feature; a tower
    whose readout is another (`dense_last_block = False`) runs it as usual.

    A tower says `blocks`, `prefix` (how many tokens stand before the patches), [`~TransformerTower.embed`],
    [`~TransformerTower.read_dense`] and [`~TransformerTower.read_pooled`].
    """

    prefix: int = 1
    dense_last_block: ClassVar[bool] = True

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def embed(self, pixel_values: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple]:
        """The first block's tokens `(batch, prefix + patches, hidden)`, and what every block takes beside them."""
        raise NotImplementedError

    def read_dense(self, patches: Tensor) -> Tensor:
        """From the last block's patches `(batch, patches, hidden)` to dense features of the same shape."""
        raise NotImplementedError

    def read_pooled(self, hidden_states: Tensor) -> Tensor:
        """From the last block's tokens `(batch, prefix + patches, hidden)` to the global feature `(batch, hidden)`."""
        raise NotImplementedError

    def forward(self, pixel_values, dense=True, pooled=False, stages=()):
        pixel_values, size = self.whole_cells(pixel_values)
        hidden_states, context = self.embed(pixel_values, size)
        hidden_states = self.on_the_graph(hidden_states, self.blocks[0])
        maps = {}

        def tap(index: int, tokens: Tensor, prefix: int) -> None:
            if f"block{index}" in stages:
                # (batch, prefix + height * width, dim) to (batch, dim, height, width)
                maps[f"block{index}"] = tokens[:, prefix:].unflatten(1, size).permute(0, 3, 1, 2)

        *trunk, last = self.blocks if self.dense_last_block else (*self.blocks, None)
        for index, block in enumerate(trunk):
            hidden_states = self.run_block(block, hidden_states, *context)
            tap(index, hidden_states, self.prefix)
        features = image = None
        if dense:
            patches = hidden_states[:, self.prefix :]
            if last is not None:
                patches = self.run_block(last, patches, *context, dense=True)
                tap(len(trunk), patches, 0)
            features = self.read_dense(patches).unflatten(1, size)
        if pooled:
            image = self.read_pooled(hidden_states if last is None else self.run_block(last, hidden_states, *context))
        return VisionFeatures(features, image, maps)

    def unused_when_dense(self, last: nn.Module) -> list[nn.Module]:
        """The parts of the last block that its dense path leaves out."""
        return [last.self_attn.q_proj, last.self_attn.k_proj]

    def trainable_blocks(self):
        *trunk, last = self.blocks
        unused = self.unused_when_dense(last) if self.dense_last_block else []
        left_out = {id(parameter) for part in unused for parameter in part.parameters()}
        return [[p for p in block.parameters() if id(p) not in left_out] for block in (*trunk, last)]


def exporting() -> bool:
    """Whether a graph is drawn that has to hold for images of other sizes, too."""
    return is_torchdynamo_exporting() or torch.jit.is_tracing()


def resize_positions(positions: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """
    Learned positions for a grid of another size: bicubic over the plane, without antialiasing, in float32.

    Args:
        positions (`Tensor` of shape `(prefix + side * side, dim)`): for the tower's native square grid.
        size (`tuple[int, int]`): height and width of the grid at hand.
        prefix (`int`): how many leading positions, of a class or mean token, are kept as they are.

    Returns:
        `Tensor` of shape `(prefix + height * width, dim)`.
    """
    side = round((len(positions) - prefix) ** 0.5)
    # An exported graph always interpolates, which at the native size changes nothing: it holds for all sizes.
    if not exporting() and (side, side) == tuple(size):
        return positions
    plane = positions[prefix:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (1, dim, side, side)
    plane = nn.functional.interpolate(plane, size=size, mode="bicubic", align_corners=False)
    return torch.cat([positions[:prefix], plane[0].flatten(1).T.to(positions.dtype)])


__all__ = ["TransformerTower", "VisionFeatures", "VisionTower", "resize_positions"]
