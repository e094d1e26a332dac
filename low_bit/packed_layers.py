"""Linear and convolution layers that hold their weight packed, for inference.

Buffers have the names of the file format: the layer `a.b` holds `a.b._weight_qdata`,
`a.b._weight_scale` and `a.b._weight_zero`, the tensors that `packed_files.to_tensors` gives for
`a.b.weight`. The meaning of the codes (tag, shape, level table) belongs to the constructor. Scales
keep their type when a module is cast.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.backends import Backend
from ..kernels.checks import FLOATS
from ..kernels.packed_linear.encode import from_float
from ..kernels.packed_linear.formats import SCALE_DTYPES, PackedWeight, Tag, from_matrix
from ..kernels.packed_linear.op import (
    Activations,
    Route,
    check_settings,
    packed_linear,
    unpack_weight,
)
from ..kernels.packed_linear.prepack import PrepackedWeight, kernel_refusal, prepack

PART_DTYPES = {
    "_weight_qdata": (torch.uint8,),
    "_weight_scale": SCALE_DTYPES,
    "_weight_zero": (torch.uint8,),
    "_act_step": FLOATS,
}
"""Types that each buffer may have; a loaded state is never converted to another type."""


class PackedLayer(nn.Module):
    """A packed weight and its bias, with copies of the weight in faster layouts.

    The kernels' copy (on CUDA only) and the dense copy of `cache` are made by `prepare` or the
    first call, and dropped when the module moves, is cast or loads a state; they are not part of a
    state dict. Buffers must not be written to in other ways.

    In the kernels' copy K is rounded up to 256 columns for `bin1` and `bin2`, to 128 for `tern2`,
    `tern3` and `u2` and to 64 for `u4`; trits take two bits each and scales are float32. It is
    about as large as the packed weight where K is large, and several times that where K is small.

    Args:
        weight: Packed weight.
        bias: Bias, one number per output channel; None: no bias.
        activations: Treatment of the input, `float` or `int8`; see `packed_linear`.
        act_scale: Common scale of int8 activations, see `packed_linear`; the buffer `_act_step`.
        cache: Keep the weight unpacked after the first call, in the type of the input; this has
            the speed and takes the memory of a float layer.
        route: Way of the product on a GPU, `auto`, `fused` or `unpack`; see `packed_linear`.
        backend: Implementation, `reference`, `triton` or `auto`; see `kernels/backends.py`.

    Raises:
        ValueError: If a setting does not fit the weight or another setting, see `packed_linear`,
            or `cache` is set with int8 activations.
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
        check_settings(weight, bias, activations, act_scale, route, backend)
        if cache and activations != "float":
            raise ValueError(f"cache: expected False with activations {activations!r}, found True")
        self.tag, self.shape, self.level_table = weight.tag, weight.shape, weight.level_table
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
        """Packed weight made of the buffers."""
        return PackedWeight(
            self.tag,
            self.shape,
            self._weight_qdata,
            self._weight_scale,
            self._weight_zero,
            self.level_table,
        )

    def num_bytes(self) -> int:
        """Size of the state in bytes: codes, scales, zero points, bias and activation step."""
        parts = (self.bias, self._act_step)
        rest = sum(part.numel() * part.element_size() for part in parts if part is not None)
        return self.weight.num_bytes() + rest

    def forget(self) -> None:
        """Drop the copies made of the weight; the next call makes them again."""
        self._prepacked = self._dense = None

    @torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]  # torch's
        reason="call `prepare` on every packed layer before torch.compile(fullgraph=True)"
    )
    def prepare(self, dtype: torch.dtype | None = None) -> Self:
        """Make the copies of the weight that calls will use, on the device of the weight.

        The first call makes them, but cannot do so inside a graph: call this before the layer is
        compiled with `fullgraph=True` or captured in a CUDA graph.

        Args:
            dtype: Type of the dense copy with `cache`, that of later inputs; None: no dense copy.

        Raises:
            RuntimeError: If a CUDA graph is being captured.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("call `prepare` on every packed layer before a CUDA graph capture")
        with torch.inference_mode(False):  # the copies serve calls outside that mode too
            if self._prepacked is None and self._kernels_may_run():
                self._prepacked = prepack(self.weight)
            if self.cache and dtype is not None and not self._has_dense(dtype):
                self._dense = self._unpacked(dtype)
        return self

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Unpack the weight, rounded to a type, in its own shape; `cache` keeps the result."""
        if not self.cache:
            return self._unpacked(dtype)
        if not self._has_dense(dtype):
            self.prepare(dtype)
        assert self._dense is not None
        return self._dense

    def extra_repr(self) -> str:
        """Description of the layer by shape, format and bits."""
        bits = self.weight.bits_per_weight()
        return f"{'x'.join(map(str, self.shape))}, {self.tag}, {bits:.3f} bits per weight"

    def _multiply(self, x: Tensor) -> Tensor:
        """Compute x W^T + bias for rows (..., K)."""
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
        """Weight that calls use: in the kernels' layout where the kernels may run."""
        if self._prepacked is None and self._kernels_may_run():
            self.prepare()
        return self.weight if self._prepacked is None else self._prepacked

    def _kernels_may_run(self) -> bool:
        """Whether calls take the weight in the kernels' layout."""
        on_gpu = self._weight_qdata.device.type == "cuda"
        if self.backend == "reference" or not (self.backend == "triton" or on_gpu):
            return False
        weight = self.weight
        terms = (weight.tag, weight.scale, weight.zero, weight.level_table, weight.num_columns)
        return kernel_refusal(*terms) is None

    def _has_dense(self, dtype: torch.dtype) -> bool:
        """Whether there is a dense copy in a type."""
        return self._dense is not None and self._dense.dtype == dtype

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """Unpack the weight, rounded to a type, in its own shape."""
        matrix = unpack_weight(self._operand(), dtype, backend=self.backend)
        return from_matrix(matrix, self.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in ("_weight_scale", "_act_step")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        for name, before in kept.items():
            now = getattr(self, name)
            if before is not None and now.dtype != before.dtype:
                setattr(self, name, before.to(now.device))
        self.forget()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, allowed in PART_DTYPES.items():
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if own is None or not isinstance(given, Tensor):
                continue
            if given.dtype not in allowed:
                error_msgs.append(f"{prefix}{name}: expected one of {allowed}, found {given.dtype}")
            else:
                setattr(self, name, own.to(given.dtype))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.forget()


class PackedLinear(PackedLayer):
    """Linear layer, as `nn.Linear`, with a packed weight (N, K); see `PackedLayer`."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None, **settings: Any) -> None:
        super().__init__(weight, bias, **settings)
        if len(weight.shape) != 2:
            raise ValueError(f"weight: expected 2 axes, found {weight.shape}")

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
        """Encode a float layer by `from_float`; settings are those of the constructor."""
        weight = from_float(linear.weight, tag, group, asymmetric=asymmetric)
        return cls(weight, linear.bias, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., K); returns (..., N)."""
        if self.cache:
            return F.linear(x, self.dense(x.dtype), _as(self.bias, x))
        return self._multiply(x)


class PackedConv2d(PackedLayer):
    """Convolution, as `nn.Conv2d`, with a packed weight and zero padding.

    A 1x1 kernel, or one as large as its stride without padding, is computed as a linear layer of
    pixels or patches. Any other layer unpacks its weight once per call, in the type of x, and
    convolves: the workspace is one dense weight, C_out C_in / groups kh kw elements.

    Args:
        weight: Packed weight of shape (C_out, C_in / groups, kh, kw).
        bias: Bias, one number per output channel; None: no bias.
        stride: Stride in pixels (down, right), or one number for both.
        padding: Padding in pixels (down, right), or one number for both, or `same` (with a stride
            of 1) or `valid`.
        dilation: Dilation in pixels (down, right), or one number for both.
        groups: Number of groups of channels.
        settings: Further settings, those of `PackedLayer`.

    Raises:
        ValueError: If the weight does not have four axes, a number does not fit, the groups do not
            divide its channels, or activations are int8 and the convolution is not a linear layer.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(weight, bias, **settings)
        if len(weight.shape) != 4:
            raise ValueError(f"weight: expected 4 axes, found {weight.shape}")
        if groups < 1 or weight.shape[0] % groups:
            raise ValueError(
                f"groups: expected a divisor of {weight.shape[0]} output channels, found {groups}"
            )
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        if isinstance(padding, str):
            if padding not in ("same", "valid") or (padding == "same" and self.stride != (1, 1)):
                raise ValueError(
                    "padding: expected pixels, 'valid' or, with a stride of 1, 'same', "
                    f"found {padding!r} with stride {self.stride}"
                )
            self.padding: tuple[int, int] | str = padding
        else:
            self.padding = _pair("padding", padding, 0)
        self.groups, kernel = groups, weight.shape[2:]
        unpadded = self.padding in ((0, 0), "valid") or (padding == "same" and kernel == (1, 1))
        tiled = kernel == (1, 1) or (self.stride == kernel and self.dilation == (1, 1))
        self.is_linear = groups == 1 and unpadded and tiled
        if self.activations != "float" and not self.is_linear:
            raise ValueError(
                "activations: int8 needs a 1x1 kernel or one equal to its stride, without padding "
                f"and groups; found kernel {kernel}, stride {self.stride}, padding {self.padding}"
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
        """Encode a float layer by `from_float`; settings are those of the constructor.

        Raises:
            ValueError: If the layer pads with anything but zeros.
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
        """Apply the layer to (B, C_in, H, W); returns (B, C_out, H', W'). B may be missing."""
        if self.is_linear and not self.cache:
            if x.ndim == 3:
                return self._patches_times_weight(x[None])[0]
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
        """Apply the linear layer to each patch; the result has the memory format of x."""
        height, width = self.shape[2:]
        if x.ndim != 4 or x.shape[2] < height or x.shape[3] < width:
            raise ValueError(
                f"x: expected (B, {self.shape[1]}, H, W) of at least {height} x {width} pixels, "
                f"found {tuple(x.shape)}"
            )
        if (height, width) == (1, 1):
            patches = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        else:
            down, right = x.shape[2] // height, x.shape[3] // width
            x_whole = x[:, :, : down * height, : right * width]
            columns = torch.unflatten(x_whole, 3, (right, width))
            tiles = torch.unflatten(columns, 2, (down, height))
            patches = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3)  # (B, H', W', kh kw C_in)
        out = self._multiply(patches).permute(0, 3, 1, 2)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return out if channels_last and not x.is_contiguous() else out.contiguous()


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """Check a number of pixels, one for both directions or two, and return (down, right)."""
    found = tuple(value) if isinstance(value, Sequence) else (value, value)
    try:
        down, right = (operator.index(number) for number in found)
    except (TypeError, ValueError):
        down = right = least - 1
    if down < least or right < least:
        raise ValueError(
            f"{name}: expected one or two whole numbers of at least {least}, found {value!r}"
        )
    return down, right


def _as(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """Cast a bias to the type of x."""
    return None if bias is None else bias.to(x.dtype)
