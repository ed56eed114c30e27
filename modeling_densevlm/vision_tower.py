# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""The interface of a vision tower. The model accesses its towers through this interface only."""

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
    Output of a vision tower: that of a vision model of transformers, plus the dense map and intermediate maps.

    Args:
        last_hidden_state (`torch.Tensor`, returned with `pooled=True`):
            Output of the last block on its unmodified path, before the final norm: `(batch, tokens, hidden)`, or
            `(batch, channels, height, width)` for a CNN.
        pooler_output (`torch.Tensor` of shape `(batch, hidden)`, returned with `pooled=True`):
            The global image feature, before the projection into the image-text space.
        dense (`torch.Tensor` of shape `(batch, height, width, hidden)`, returned with `dense=True`):
            The dense map, before the same projection.
        stages (`dict[str, torch.Tensor]`, *optional*):
            The requested intermediate maps by name, each of shape `(batch, channels, height, width)`.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The input of the first block and the output of each block, in the layout of `last_hidden_state`. The last
            entry is from the unmodified path if `pooled=True`, otherwise from the dense path.
        attentions (`tuple[torch.Tensor]`, *optional*):
            Attention weights of every block that computes them, each of shape `(batch, heads, tokens, tokens)`. The
            dense path computes none.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    dense: Tensor | None = None
    stages: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Grid(NamedTuple):
    """Size of an image in cells (patches), and its rotary tables; passed from `embed` to the later steps."""

    height: int
    width: int
    rotary: tuple[Tensor, ...] = ()
    """Further inputs of every block, after tokens and attention mask: the rotary tables of towers that have them."""


class VisionTower(nn.Module):
    r"""
    Mixin of all vision towers.

    A tower is a [`PreTrainedModel`] with three steps, which heads may call one by one:

    ```python
    >>> hidden_states, grid = tower.embed(pixel_values)
    >>> hidden_states = tower.run(hidden_states, grid, last=9)  # blocks 0 to 8; prefix tokens are preserved
    >>> hidden_states = tower.run(hidden_states, grid, first=9, attention_mask=mask)
    >>> pooled = tower.read(hidden_states, grid, pooled=True)  # or the dense map
    ```

    * [`~VisionTower.forward`] computes the dense map, the pooled feature and intermediate maps in one pass. Blocks and
      layers are always called, and no weights of a callable layer are read directly: hooks (offloading, sharding) run,
      and layers may be replaced (adapters, quantization).
    * [`~VisionTower.trainable_blocks`] lists the parameters that the dense path trains, per block.
    * `stride`, `hidden_size`, `stage_names`, `stage_channels` and `stage_strides` describe the maps.
    * `projection_bias`: whether the projection into the image-text space has a bias; `None` if the tower's features
      are already in that space.
    * `dense_last_block`: whether the last block has a dense path. If not, the dense path only replaces the readout.
    * `has_class_token`: whether the first token is a class token.
    """

    config: Any
    dtype: torch.dtype
    _can_record_outputs: dict[str, Any] | None
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Any
    projection_bias: ClassVar[bool | None] = False
    dense_last_block: ClassVar[bool] = False
    has_class_token: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        """Image pixels per cell of the dense map."""
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
        """Number of channels of each intermediate map."""
        return [self.config.hidden_size] * len(self.stage_names)

    @property
    def stage_strides(self) -> list[int]:
        """Image pixels per cell of each intermediate map."""
        return [self.stride] * len(self.stage_names)

    def make_projection(self, dim: int) -> nn.Module:
        """The projection of the tower's features into an image-text space of `dim` dimensions."""
        if self.projection_bias is not None:
            return nn.Linear(self.hidden_size, dim, bias=self.projection_bias)
        if dim != self.hidden_size:
            raise ValueError(
                f"`projection_dim` is {dim}, but a {self.config.model_type} of width {self.hidden_size} has no "
                f"projection: its features are in a space of {self.hidden_size} dimensions."
            )
        return nn.Identity()

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """
        Embeds the image.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): normalised images.

        Returns:
            The input of the first block, `(batch, prefix + patches, hidden)` for a transformer, and the [`Grid`].
        """
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
        Runs the blocks (stages of a CNN) `first:last`.

        Args:
            hidden_states (`torch.Tensor`):
                Output of `embed` or of an earlier `run`. A head may prepend tokens of its own.
            grid ([`Grid`]): as returned by `embed`.
            first (`int`, *optional*, defaults to 0): index of the first block.
            last (`int`, *optional*): index after the last block, as in a slice; by default all blocks are run.
            attention_mask (`torch.Tensor`, *optional*):
                Float, added to the attention logits, or boolean, `True` where attention is allowed; broadcastable to
                `(batch, heads, tokens, tokens)`.
            dense_residual (`str`, *optional*):
                By default the last block runs unmodified. If given, it takes its dense path, and the value path is
                added to this residual: `"token"`, each location's own token (locations do not interact, so prefix
                tokens are dropped), or `"cls"`, the class token.

        Returns:
            `torch.Tensor`: the hidden states after the last of these blocks.

        Raises:
            `ValueError` for a `dense_residual` that the tower does not have.
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
        """Runs one block (stage of a CNN); arguments as in [`~VisionTower.run`]."""
        raise NotImplementedError

    def read(self, hidden_states: Tensor, grid: Grid, pooled: bool = False) -> Tensor:
        """
        Reads features from the output of the last block.

        Args:
            hidden_states (`torch.Tensor`): output of the last block.
            grid ([`Grid`]): as returned by `embed`.
            pooled (`bool`, *optional*, defaults to `False`): whether to return the global feature.

        Returns:
            `torch.Tensor`: the dense map `(batch, height, width, hidden)`, or the global feature `(batch, hidden)`.
        """
        raise NotImplementedError

    def to_map(self, hidden_states: Tensor, grid: Grid) -> Tensor:
        """The output of a block or stage as a map `(batch, channels, height, width)`."""
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
        Computes dense, pooled and intermediate features in one pass; both paths share all blocks but the last.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Normalised images of any size; a remainder smaller than a cell is cropped at the right and bottom.
            dense (`bool`, *optional*, defaults to `True`): whether to compute the dense map.
            pooled (`bool`, *optional*, defaults to `True`): whether to compute the global feature.
            stages (collection of `str`, *optional*): names of the intermediate maps to return.
            dense_residual (`str`, *optional*, defaults to `"token"`): as in [`~VisionTower.run`].
            output_hidden_states (`bool`, *optional*):
                Whether to return `hidden_states`; defaults to `config.output_hidden_states`.
            output_attentions (`bool`, *optional*):
                Whether to return `attentions`; requires eager attention.

        Returns:
            [`VisionFeatures`]

        Raises:
            `ValueError` for unknown stages, and where the tower cannot return attention weights.
        """
        if output_attentions and not (self._can_record_outputs and self.config._attn_implementation == "eager"):
            raise ValueError(
                "`output_attentions` is for eager attention (`model.set_attn_implementation('eager')`) of a tower "
                f"whose blocks give it: a {self.config.model_type} with {self.config._attn_implementation} does not."
            )
        names = self.stage_names
        maps: dict[str, Tensor] = {}
        all_hidden_states: tuple[Tensor, ...] = ()
        if not set(stages) <= set(names):
            raise ValueError(f"`stages` are names of {', '.join(names)}; got {', '.join(sorted(stages))}.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states, grid = self.embed(pixel_values)

        def tap(index: int, hidden_states: Tensor) -> Tensor:
            if names[index] in stages and names[index] not in maps:
                maps[names[index]] = self.to_map(hidden_states, grid)
            return hidden_states

        num_shared = len(names) - self.dense_last_block
        for index in range(num_shared):
            all_hidden_states += (hidden_states,) if output_hidden_states else ()
            hidden_states = tap(index, self.run(hidden_states, grid, index, index + 1))
        all_hidden_states += (hidden_states,) if output_hidden_states and self.dense_last_block else ()
        dense_map = pooler_output = last_hidden_state = dense_hidden_state = None
        if dense:
            dense_hidden_state = tap(-1, self.run(hidden_states, grid, num_shared, dense_residual=dense_residual))
            dense_map = self.read(dense_hidden_state, grid)
        if pooled:
            last_hidden_state = tap(-1, self.run(hidden_states, grid, num_shared))
            pooler_output = self.read(last_hidden_state, grid, pooled=True)
        if output_hidden_states:
            last = last_hidden_state if pooled else dense_hidden_state
            all_hidden_states += () if last is None else (last,)
        return VisionFeatures(
            last_hidden_state=last_hidden_state,
            pooler_output=pooler_output,
            dense=dense_map,
            stages=maps or None,
            hidden_states=all_hidden_states if output_hidden_states else None,
        )

    def run_block(self, block: nn.Module, hidden_states: Tensor, *context: Any, **options: Any) -> Tensor:
        """Calls a block; towers override it to checkpoint blocks that have no gradient checkpointing of their own."""
        return block(hidden_states, *context, **options)

    def crop_to_grid(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """The image cropped to a whole number of cells, in the dtype of the tower, and its [`Grid`]."""
        if pixel_values.ndim != 4:
            raise ValueError(f"`pixel_values` is (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        sides = tuple(pixel_values.shape[-2:])
        height, width = (side // self.stride for side in sides)
        if height < 1 or width < 1:
            raise ValueError(f"An image of {sides} pixels holds no patch of {self.stride}.")
        # Not while tracing: the graph would be specialized to sides with, or without, a remainder.
        if not torch.compiler.is_compiling() and (height * self.stride, width * self.stride) != sides:
            logger.warning_once(
                f"Image sides {sides} are no multiples of the patch size {self.stride}: the remainder at the right "
                "and below is dropped, so boxes are fractions of what is left."
            )
        # `dtype` is that of the first floating-point parameter: quantized layers store integers.
        pixel_values = pixel_values[..., : height * self.stride, : width * self.stride].to(self.dtype)
        return pixel_values, Grid(height, width)

    def require_input_grad(self, hidden_states: Tensor, block: nn.Module) -> Tensor:
        """
        The input of a block, marked as requiring a gradient where re-entrant checkpointing needs that: it computes no
        gradients for a block's parameters unless an input requires one, which is not so after a frozen embedding.
        """
        owner: Any = block if hasattr(block, "gradient_checkpointing") else self
        if owner.gradient_checkpointing and owner.training and not hidden_states.requires_grad:
            options = getattr(owner._gradient_checkpointing_func, "keywords", {})
            if torch.is_grad_enabled() and options.get("use_reentrant", True):
                return hidden_states.detach().requires_grad_()
        return hidden_states


class ConvTower(VisionTower):
    """Mixin of the CNNs, all of four stages. The dense map is the readout, applied at every location."""

    stride = 32
    stage_strides = [4, 8, 16, 32]

    def run(self, hidden_states, grid, first=0, last=None, attention_mask=None, dense_residual=None):
        if attention_mask is not None:
            raise ValueError(f"The stages of a {self.config.model_type} have no attention to mask.")
        return super().run(hidden_states, grid, first, last, dense_residual=dense_residual)


class TransformerTower(VisionTower):
    r"""
    Mixin of the vision transformers. All blocks but the last run unmodified. The last block runs on its dense path,
    `block(hidden_states, ..., dense_residual=...)`, for the patch tokens, and unmodified for the pooled feature. In
    towers with `dense_last_block = False`, the last block runs unmodified for both.

    Subclasses define `blocks`, `num_prefix_tokens` (tokens before the patch tokens), [`~VisionTower.embed`],
    [`~TransformerTower.read_tokens`] and [`~TransformerTower.read_pooled`].
    """

    encoder: Any
    num_prefix_tokens: int = 1
    dense_last_block: ClassVar[bool] = True
    has_class_token: ClassVar[bool] = True

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        return self.encoder.layers

    @property
    def stage_names(self):
        return [f"block{index}" for index in range(len(self.blocks))]

    def read_tokens(self, hidden_states: Tensor) -> Tensor:
        """The readout of each token on its own: `(batch, tokens, hidden)` in, the same shape out."""
        raise NotImplementedError

    def read_pooled(self, hidden_states: Tensor) -> Tensor:
        """The global feature `(batch, hidden)` from the last block's tokens `(batch, prefix + patches, hidden)`."""
        raise NotImplementedError

    def patch_tokens(self, hidden_states: Tensor, grid: Grid, num_prefix_tokens: int = 0) -> Tensor:
        """The patch tokens, which are the last ones, preceded by the given number of prefix tokens."""
        return hidden_states[:, hidden_states.shape[1] - grid.height * grid.width - num_prefix_tokens :]

    def run_stage(self, index, hidden_states, grid, attention_mask, dense_residual):
        block = self.blocks[index]
        hidden_states = self.require_input_grad(hidden_states, block)
        if dense_residual is None or not self.dense_last_block or index + 1 < len(self.blocks):
            return self.run_block(block, hidden_states, attention_mask, *grid.rotary)
        num_prefix_tokens = 0 if dense_residual == "token" else self.num_prefix_tokens
        hidden_states = self.patch_tokens(hidden_states, grid, num_prefix_tokens)
        return self.run_block(block, hidden_states, None, *grid.rotary, dense_residual=dense_residual)

    def read(self, hidden_states, grid, pooled=False):
        if pooled:
            return self.read_pooled(self.patch_tokens(hidden_states, grid, self.num_prefix_tokens))
        return self.read_tokens(self.patch_tokens(hidden_states, grid)).unflatten(1, (grid.height, grid.width))

    def to_map(self, hidden_states, grid):
        # (batch, prefix + height * width, dim) to (batch, dim, height, width)
        return self.patch_tokens(hidden_states, grid).unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)

    def unused_when_dense(self, last: nn.Module) -> list[nn.Module]:
        """The layers of the last block that its dense path does not use."""
        attention: Any = last.self_attn
        return [attention.q_proj, attention.k_proj]

    def trainable_blocks(self):
        *trunk, last = self.blocks
        unused = self.unused_when_dense(last) if self.dense_last_block else []
        excluded = {id(parameter) for layer in unused for parameter in layer.parameters()}
        return [[p for p in block.parameters() if id(p) not in excluded] for block in (*trunk, last)]


def is_exporting() -> bool:
    """Whether a graph is being traced that must also be valid for other image sizes."""
    return is_torchdynamo_exporting() or torch.jit.is_tracing()


def resize_positions(positions: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """
    Resizes learned position embeddings to another grid: bicubic interpolation without antialiasing, in float32.

    Args:
        positions (`torch.Tensor` of shape `(prefix + side * side, dim)`): embeddings of the native square grid.
        size (`tuple[int, int]`): height and width of the new grid.
        prefix (`int`): number of leading embeddings (of a class token, say) that are not resized.

    Returns:
        `torch.Tensor` of shape `(prefix + height * width, dim)`.
    """
    side = round((len(positions) - prefix) ** 0.5)
    # An exported graph always interpolates (the identity at the native size), so that it is valid for all sizes.
    if not is_exporting() and (side, side) == tuple(size):
        return positions
    plane = positions[prefix:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (1, dim, side, side)
    plane = nn.functional.interpolate(plane, size=size, mode="bicubic", align_corners=False)
    return torch.cat([positions[:prefix], plane[0].flatten(1).T.to(positions.dtype)])


__all__ = ["ConvTower", "Grid", "TransformerTower", "VisionFeatures", "VisionTower", "resize_positions"]
