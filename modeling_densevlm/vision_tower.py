# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""What a vision tower gives, whatever it is made of. The model knows its towers by this interface alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, logging
from transformers.utils.import_utils import is_torchdynamo_exporting
from transformers.utils.output_capturing import capture_outputs


logger = logging.get_logger(__name__)


@dataclass
class VisionFeatures(ModelOutput):
    """
    What one pass of a tower gives: that of a vision model of transformers, and the dense map.

    Args:
        last_hidden_state (`torch.Tensor`, given with `pooled`):
            What the last block gives on its unmodified path, before the final norm: `(batch, tokens, hidden)`, or
            `(batch, channels, height, width)` of a CNN.
        pooler_output (`torch.Tensor` of shape `(batch, hidden)`, given with `pooled`):
            The image's global feature, before the projection into the image-text space.
        dense (`torch.Tensor` of shape `(batch, height, width, hidden)`, given with `dense`):
            The dense map, before that projection.
        stages (`dict[str, torch.Tensor]`):
            The maps asked for, by name, each `(batch, channels, height, width)`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            What enters the first block, and what each one gives, in the form of `last_hidden_state`. The last one's is
            of the unmodified path where `pooled` is asked for, else of the dense path.
        attentions (`tuple[torch.Tensor]`, *optional*):
            Those of all blocks that compute some, `(batch, heads, tokens, tokens)`: the dense path has none.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    dense: Tensor | None = None
    stages: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Grid(NamedTuple):
    """The grid of an image's cells, which the steps after `embed` need beside its tokens."""

    height: int
    width: int
    rotary: tuple[Tensor, ...] = ()
    """What each block takes beside tokens and attention mask: tables of rotary positions, where a tower has them."""


class VisionTower:
    r"""
    Mixin of all vision towers. A tower is a [`PreTrainedModel`] of three steps, which heads may take one by one:

    ```python
    >>> hidden_states, grid = tower.embed(pixel_values)
    >>> hidden_states = tower.run(hidden_states, grid, last=9)  # blocks 0..8; tokens before the patches are kept
    >>> hidden_states = tower.run(hidden_states, grid, first=9, attention_mask=mask)
    >>> pooled = tower.read(hidden_states, grid, pooled=True)  # or the dense map
    ```

    * Its [`~VisionTower.forward`] gives the dense map, the pooled feature and intermediate maps in one pass. Towers,
      their blocks and layers are always called, so that hooks (offloading, sharding) fire and layers put in their
      place (adapters, quantised ones) are used; nothing reads the weights of a layer that it could call.
    * [`~VisionTower.trainable_blocks`]: which parameters the dense path trains, block by block.
    * `stride`, `hidden_size`, `stage_names`, `stage_channels` and `stage_strides`: the geometry of its maps.
    * `projection_bias`: whether the projection into the image-text space has a bias; `None` where the tower's features
      are in that space already.
    * `dense_last_block`: whether the last block has a dense path; else it is the readout alone that is swapped.
    * `has_class_token`: whether the first token is one of the whole image.
    """

    projection_bias: ClassVar[bool | None] = False
    dense_last_block: ClassVar[bool] = False
    has_class_token: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the dense map."""
        return self.config.patch_size

    @property
    def hidden_size(self) -> int:
        """Width of the features before the projection."""
        return self.config.hidden_size

    @property
    def stage_names(self) -> list[str]:
        """Names of the intermediate maps."""
        return self.config.stage_names

    @property
    def stage_channels(self) -> list[int]:
        """Width of each intermediate map."""
        return [self.config.hidden_size] * len(self.stage_names)

    @property
    def stage_strides(self) -> list[int]:
        """Pixels of the image per cell, for each intermediate map."""
        return [self.stride] * len(self.stage_names)

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

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """What enters the first block (or stage): of a transformer `(batch, prefix + patches, hidden)`."""
        raise NotImplementedError

    def run(
        self,
        hidden_states: Tensor,
        grid: Grid,
        first: int = 0,
        last: int | None = None,
        attention_mask: Tensor | None = None,
        dense_residual: str | None = None,
    ) -> Tensor:
        """
        Runs the blocks `first:last` (of a CNN: stages), counted as a slice counts.

        Args:
            hidden_states (`torch.Tensor`):
                What `embed` or an earlier `run` gave. A head's own tokens may stand before those of the tower.
            attention_mask (`torch.Tensor`, *optional*):
                Added to the logits of the attention, or boolean, `True` where a token may look; broadcast to
                `(batch, heads, tokens, tokens)`.
            dense_residual (`str`, *optional*):
                By default the last block runs as it was trained. Given, it takes its dense path, and this is what the
                value path is added to: `"token"`, each location's own (there, no location looks at another, so the
                tokens before the patches are dropped), or `"cls"`, the class token's.
        """
        if dense_residual not in (None, "token", "cls") or (dense_residual == "cls" and not self.has_class_token):
            raise ValueError(
                "`dense_residual` is 'token', or 'cls' where the last block has a class token; got "
                f"{dense_residual!r} for a {self.config.model_type}."
            )
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = torch.where(attention_mask, 0.0, torch.finfo(hidden_states.dtype).min)
            attention_mask = attention_mask.to(hidden_states.dtype)
        for index in range(*slice(first, last).indices(len(self.stage_names))):
            hidden_states = self.run_stage(index, hidden_states, grid, attention_mask, dense_residual)
        return hidden_states

    def run_stage(
        self, index: int, hidden_states: Tensor, grid: Grid, attention_mask: Tensor | None, dense_residual: str | None
    ) -> Tensor:
        """One block or stage of [`~VisionTower.run`]."""
        raise NotImplementedError

    def read(self, hidden_states: Tensor, grid: Grid, pooled: bool = False) -> Tensor:
        """The dense map `(batch, height, width, hidden)`, or the global feature `(batch, hidden)`."""
        raise NotImplementedError

    def to_map(self, hidden_states: Tensor, grid: Grid) -> Tensor:
        """What a block or stage gives as a map `(batch, channels, height, width)`."""
        return hidden_states

    def trainable_blocks(self) -> list[list[nn.Parameter]]:
        """The parameters of each block that the dense path uses, first block first."""
        raise NotImplementedError

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        dense: bool = True,
        pooled: bool = True,
        stages: Collection[str] = (),
        dense_residual: str = "token",
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VisionFeatures:
        """
        Dense, pooled and intermediate features; they share all that can be shared.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Of any size; what does not fill a whole cell at the right and below is dropped.
            dense (`bool`, *optional*, defaults to `True`): whether to compute the dense map.
            pooled (`bool`, *optional*, defaults to `True`): whether to compute the global feature.
            stages (collection of `str`, *optional*): names of the intermediate maps to give.
            dense_residual (`str`, *optional*, defaults to `"token"`): as in [`~VisionTower.run`].
            output_hidden_states, output_attentions (`bool`, *optional*): see [`VisionFeatures`].
        """
        if output_attentions and not (self._can_record_outputs and self.config._attn_implementation == "eager"):
            raise ValueError(
                "`output_attentions` is for eager attention (`model.set_attn_implementation('eager')`) of a tower "
                f"whose blocks give it: a {self.config.model_type} with {self.config._attn_implementation} does not."
            )
        names, maps, kept = self.stage_names, {}, ()
        if not set(stages) <= set(names):
            raise ValueError(f"`stages` are names of {', '.join(names)}; got {', '.join(sorted(stages))}.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states, grid = self.embed(pixel_values)

        def tap(index: int, hidden_states: Tensor) -> Tensor:
            if names[index] in stages and names[index] not in maps:
                maps[names[index]] = self.to_map(hidden_states, grid)
            return hidden_states

        trunk = len(names) - self.dense_last_block  # how many blocks both paths share
        for index in range(trunk):
            kept += (hidden_states,) if output_hidden_states else ()
            hidden_states = tap(index, self.run(hidden_states, grid, index, index + 1))
        kept += (hidden_states,) if output_hidden_states and self.dense_last_block else ()
        dense_map = pooler_output = last_hidden_state = on_dense_path = None
        if dense:
            on_dense_path = tap(-1, self.run(hidden_states, grid, trunk, dense_residual=dense_residual))
            dense_map = self.read(on_dense_path, grid)
        if pooled:
            last_hidden_state = tap(-1, self.run(hidden_states, grid, trunk))
            pooler_output = self.read(last_hidden_state, grid, pooled=True)
        return VisionFeatures(
            last_hidden_state=last_hidden_state,
            pooler_output=pooler_output,
            dense=dense_map,
            stages=maps or None,
            hidden_states=(*kept, last_hidden_state if pooled else on_dense_path) if output_hidden_states else None,
        )

    def run_block(self, block: nn.Module, hidden_states: Tensor, *context: Any, **options: Any) -> Tensor:
        """A block's pass; a block that cannot be checkpointed by itself is so here."""
        return block(hidden_states, *context, **options)

    def whole_cells(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """The image cut to whole cells, in the tower's dtype, and its grid of cells."""
        if pixel_values.ndim != 4:
            raise ValueError(f"`pixel_values` is (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        sides = tuple(pixel_values.shape[-2:])
        height, width = (side // self.stride for side in sides)
        if height < 1 or width < 1:
            raise ValueError(f"An image of {sides} pixels holds no patch of {self.stride}.")
        # Not while a graph is traced: it would then be one for sides with a remainder, or for those without.
        if not torch.compiler.is_compiling() and (height * self.stride, width * self.stride) != sides:
            logger.warning_once(
                f"Image sides {sides} are no multiples of the patch size {self.stride}: the remainder at the right "
                "and below is dropped, so boxes are fractions of what is left."
            )
        # The dtype of a tower is that of its first floating-point weight: a quantised layer stores integers.
        pixel_values = pixel_values[..., : height * self.stride, : width * self.stride].to(self.dtype)
        return pixel_values, Grid(height, width)

    def on_the_graph(self, hidden_states: Tensor, block: nn.Module) -> Tensor:
        """
        What enters a block, so that checkpointing can be re-entrant: that gives the parameters of a block no gradient
        unless its input has one, and behind a frozen embedding or stem it has none.
        """
        owner = block if hasattr(block, "gradient_checkpointing") else self
        if owner.gradient_checkpointing and owner.training and not hidden_states.requires_grad:
            options = getattr(owner._gradient_checkpointing_func, "keywords", {})
            if torch.is_grad_enabled() and options.get("use_reentrant", True):
                return hidden_states.detach().requires_grad_()
        return hidden_states


class ConvTower(VisionTower):
    """Mixin of the convolutional networks, of four stages. Dense features are the readout at every location."""

    stride = 32
    stage_strides = [4, 8, 16, 32]

    def run(self, hidden_states, grid, first=0, last=None, attention_mask=None, dense_residual=None):
        if attention_mask is not None:
            raise ValueError(f"The stages of a {self.config.model_type} have no attention to mask.")
        return super().run(hidden_states, grid, first, last, dense_residual=dense_residual)


class TransformerTower(VisionTower):
    r"""
    Mixin of the vision transformers. Every block but the last runs as the tower was trained. The last takes the dense
    path for the patches, `block(hidden_states, ..., dense_residual=...)`, and the full one for the pooled feature; a
    tower whose readout is another (`dense_last_block = False`) runs it as usual.

    A tower gives `blocks`, `prefix` (how many tokens stand before the patches), [`~VisionTower.embed`],
    [`~TransformerTower.read_tokens`] and [`~TransformerTower.read_pooled`].
    """

    prefix: int = 1
    dense_last_block: ClassVar[bool] = True
    has_class_token: ClassVar[bool] = True

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    @property
    def stage_names(self):
        return [f"block{index}" for index in range(len(self.blocks))]

    def read_tokens(self, hidden_states: Tensor) -> Tensor:
        """The readout of each token by itself, `(batch, tokens, hidden)` of the last block to the same shape."""
        raise NotImplementedError

    def read_pooled(self, hidden_states: Tensor) -> Tensor:
        """From the last block's tokens `(batch, prefix + patches, hidden)` to the global feature `(batch, hidden)`."""
        raise NotImplementedError

    def patches(self, hidden_states: Tensor, grid: Grid, prefix: int = 0) -> Tensor:
        """The tokens of the image's cells, which are the last, with as many as `prefix` of those before them."""
        return hidden_states[:, hidden_states.shape[1] - grid.height * grid.width - prefix :]

    def run_stage(self, index, hidden_states, grid, attention_mask, dense_residual):
        block = self.blocks[index]
        hidden_states = self.on_the_graph(hidden_states, block)
        if dense_residual is None or not self.dense_last_block or index + 1 < len(self.blocks):
            return self.run_block(block, hidden_states, attention_mask, *grid.rotary)
        hidden_states = self.patches(hidden_states, grid, prefix=0 if dense_residual == "token" else self.prefix)
        return self.run_block(block, hidden_states, None, *grid.rotary, dense_residual=dense_residual)

    def read(self, hidden_states, grid, pooled=False):
        if pooled:
            return self.read_pooled(self.patches(hidden_states, grid, self.prefix))
        return self.read_tokens(self.patches(hidden_states, grid)).unflatten(1, (grid.height, grid.width))

    def to_map(self, hidden_states, grid):
        # (batch, prefix + height * width, dim) to (batch, dim, height, width)
        return self.patches(hidden_states, grid).unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)

    def unused_when_dense(self, last: nn.Module) -> list[nn.Module]:
        """The parts of the last block that its dense path leaves out."""
        return [last.self_attn.q_proj, last.self_attn.k_proj]

    def trainable_blocks(self):
        *trunk, last = self.blocks
        unused = self.unused_when_dense(last) if self.dense_last_block else []
        left_out = {id(parameter) for part in unused for parameter in part.parameters()}
        return [[p for p in block.parameters() if id(p) not in left_out] for block in (*trunk, last)]


def exporting() -> bool:
    """Whether a graph is traced that has to hold for images of other sizes, too."""
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


__all__ = ["ConvTower", "Grid", "TransformerTower", "VisionFeatures", "VisionTower", "resize_positions"]
