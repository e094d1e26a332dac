"""Linear and convolution layers that hold their weight packed, for inference.

Buffers are named as on disk: the layer `a.b` holds `a.b._weight_qdata`, `a.b._weight_scale` and
`a.b._weight_zero`, so its state is what `files.to_tensors` gives for `a.b.weight`. What the codes
mean (tag, shape, levels) belongs to the constructor. Scales keep their type when a module is cast.

Source: packed_storage.md 3, 5.4 and 6.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backends import Backend
from .encode import from_float
from .formats import PackedWeight, Tag, from_matrix
from .op import Activations, Route, packed_linear, unpack_weight
from .prepack import PrepackedWeight, kernel_refusal, prepack


class PackedLayer(nn.Module):
    """A packed weight, its bias, and what is made of them when it is needed.

    The kernels' copy of the weight (as large as the packed one, on CUDA only) and the dense copy
    of `cache` are made by the first call and forgotten when the module moves, is cast or loads a
    state; they are in no state dict. Buffers must not be written to in other ways.

    Args:
        weight: The weight.
        bias: One number per output channel, or None.
        activations: As in `packed_linear`.
        act_scale: As in `packed_linear`, kept as the buffer `_act_step`.
        cache: Keep the weight unpacked after the first call, in the type of its input: the speed
            and the memory of a float layer.
        route: As in `packed_linear`.
        backend: As in `packed_linear`.

    Raises:
        ValueError: If `cache` is wanted with int8 activations.
    """

    _weight_qdata: Tensor
    _weight_scale: Tensor
    _weight_zero: Tensor | None
    _act_step: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        activations: Activations = "float",
        act_scale: Tensor | None = None,
        cache: bool = False,
        route: Route = "auto",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if cache and activations != "float":
            raise ValueError(f"cache: expected False with activations {activations!r}, found True")
        self.tag, self.shape, self.levels = weight.tag, weight.shape, weight.levels
        self.activations, self.cache, self.route = activations, cache, route
        self.backend = backend
        self.register_buffer("_weight_qdata", weight.qdata)
        self.register_buffer("_weight_scale", weight.scale)
        self.register_buffer("_weight_zero", weight.zero)
        self.register_buffer("_act_step", act_scale)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._prepacked: PrepackedWeight | None = None
        self._dense: Tensor | None = None

    @property
    def weight(self) -> PackedWeight:
        """The weight in its buffers."""
        return PackedWeight(
            self.tag,
            self.shape,
            self._weight_qdata,
            self._weight_scale,
            self._weight_zero,
            self.levels,
        )

    def num_bytes(self) -> int:
        """Bytes of the state: codes, scales, zero points, bias and activation step."""
        parts = (self.bias, self._act_step)
        rest = sum(part.numel() * part.element_size() for part in parts if part is not None)
        return self.weight.num_bytes() + rest

    def forget(self) -> None:
        """Drop the copies made of the weight; the next call makes them again."""
        self._prepacked = self._dense = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight unpacked and rounded to a type, of its own shape; kept with `cache`."""
        if self._dense is not None and self._dense.dtype == dtype:
            return self._dense
        matrix = unpack_weight(self._operand(), dtype, backend=self.backend)
        dense = from_matrix(matrix, self.shape)
        if self.cache:
            self._dense = dense
        return dense

    def extra_repr(self) -> str:
        """Shape, format and bits."""
        bits = self.weight.bits_per_weight()
        return f"{'x'.join(map(str, self.shape))}, {self.tag}, {bits:.3f} bits per weight"

    def _multiply(self, x: Tensor) -> Tensor:
        """x W^T + bias of rows (..., K)."""
        return packed_linear(
            x,
            self._operand(),
            self.bias,
            activations=self.activations,
            act_scale=self._act_step,
            route=self.route,
            backend=self.backend,
        )

    def _operand(self) -> PackedWeight | PrepackedWeight:
        """The weight, in the kernels' layout where they may run."""
        weight = self.weight
        if self.backend == "reference" or not (
            self.backend == "triton" or weight.qdata.device.type == "cuda"
        ):
            return weight
        if self._prepacked is None:
            terms = (weight.tag, weight.scale, weight.zero, weight.levels, weight.num_columns)
            if kernel_refusal(*terms) is not None:
                return weight
            self._prepacked = prepack(weight)
        return self._prepacked

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in ("_weight_scale", "_act_step")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = getattr(self, name)
            if before is not None and now.dtype != before.dtype:
                setattr(self, name, before.to(now.device))
        self.forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget()


class PackedLinear(PackedLayer):
    """`nn.Linear` with a packed weight; see `PackedLayer` and `packed_linear`."""

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        tag: Tag,
        group: int | None = None,
        *,
        asymmetric: bool = False,
        **settings: Any,
    ) -> Self:
        """A float layer in a low-bit format by `from_float`; settings as of the constructor."""
        weight = from_float(linear.weight, tag, group, asymmetric=asymmetric)
        return cls(weight, linear.bias, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if self.cache:
            return F.linear(x, self.dense(x.dtype), _as(self.bias, x))
        return self._multiply(x)


class PackedConv2d(PackedLayer):
    """`nn.Conv2d` with a packed weight and zero padding.

    A 1x1 kernel, and one as large as its stride without padding, is a linear layer of pixels or
    patches. Any other unpacks its weight once per call, in the type of x, and convolves: the
    workspace is one dense weight, C_out C_in / groups kh kw elements.

    Args:
        weight: Of shape (C_out, C_in / groups, kh, kw).
        bias: As in `PackedLayer`.
        stride: Pixels (down, right).
        padding: Pixels (down, right), or `same` or `valid`.
        dilation: Pixels (down, right).
        groups: Of channels.
        settings: As in `PackedLayer`.

    Raises:
        ValueError: If the weight has no four axes, the groups do not divide its channels, or int8
            activations meet a convolution that is no linear layer.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] | str = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(weight, bias, **settings)
        if len(weight.shape) != 4:
            raise ValueError(f"weight: expected 4 axes, found {weight.shape}")
        if weight.shape[0] % groups:
            raise ValueError(f"groups: {groups} do not divide {weight.shape[0]} output channels")
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, kernel = groups, weight.shape[2:]
        unpadded = padding in ((0, 0), "valid") or (padding == "same" and kernel == (1, 1))
        tiled = kernel == (1, 1) or (tuple(stride) == kernel and tuple(dilation) == (1, 1))
        self.is_linear = groups == 1 and unpadded and tiled
        if self.activations != "float" and not self.is_linear:
            raise ValueError(
                "activations: int8 needs a 1x1 kernel or one equal to its stride, without padding "
                f"and groups; found kernel {tuple(kernel)}, stride {stride}, padding {padding}"
            )

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        tag: Tag,
        group: int | None = None,
        *,
        asymmetric: bool = False,
        **settings: Any,
    ) -> Self:
        """A float layer in a low-bit format by `from_float`; settings as of the constructor.

        Raises:
            ValueError: If it pads with anything but zeros.
        """
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', found {conv.padding_mode!r}")
        return cls(
            from_float(conv.weight, tag, group, asymmetric=asymmetric),
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            **settings,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        if self.is_linear and not self.cache:
            return self._patches_times_weight(x)
        return F.conv2d(
            x,
            self.dense(x.dtype),
            _as(self.bias, x),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def _patches_times_weight(self, x: Tensor) -> Tensor:
        """The linear layer of each patch; in the memory format of x."""
        height, width = self.shape[2:]
        if (height, width) == (1, 1):
            patches = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        else:
            down, right = x.shape[2] // height, x.shape[3] // width
            x_whole = x[:, :, : down * height, : right * width]
            tiles = x_whole.unflatten(3, (right, width)).unflatten(2, (down, height))
            patches = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3)  # (B, H', W', kh kw C_in)
        out = self._multiply(patches).permute(0, 3, 1, 2)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return out if channels_last and not x.is_contiguous() else out.contiguous()


def _as(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """The bias in the type of x."""
    return None if bias is None else bias.to(x.dtype)
