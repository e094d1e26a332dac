"""Building of networks: sizes are counted before memory is taken, and weights come from a file.

A config of a few bytes can describe a network that no machine holds. `build_on_meta` builds on
torch's meta device, where tensors have shapes and no memory, and stops as soon as the tensors
exceed the budget; `check_size` does so before a network is built for training. `fill` gives a
network built on the meta device its weights, so that nothing is initialized only to be replaced.
`installed_file` finds weights that come in packages of others.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)

MAX_TENSORS = 10_000
"""Most parameters, buffers and modules of a network; those in `configs/` have up to 850."""
LARGEST_SIZE = 2**40
"""Bytes that a network may have where the system does not tell the size of its memory."""
_DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"}


class TooLarge(ValueError):
    """A network that this machine cannot hold."""


class Misfit(ValueError):
    """Weights that are not exactly those of a network; the message lists the names."""


def memory_budget() -> int:
    """Bytes that the tensors of a network may have: the memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system without sysconf, or without the name
        return LARGEST_SIZE


def build_on_meta(build: Callable[[], Module], *, max_bytes: int | None = None) -> Module:
    """Build a network on the meta device, which takes neither memory nor random numbers.

    Args:
        build: Function that builds it.
        max_bytes: Largest size of parameters and buffers; None: `memory_budget()`.

    Raises:
        TooLarge: If the network has more bytes, or more than `MAX_TENSORS` tensors and modules.
        ValueError: As `build`.
    """
    limit = memory_budget() if max_bytes is None else max_bytes
    with torch.device("meta"), _NoDraws(), _counting(limit):
        return build()


class _NoDraws(TorchFunctionMode):
    """Skips the drawing of initial weights, for which torch imports its compiler on meta."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or return the tensor that it would fill with random numbers."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_size(build: Callable[[], nn.Module]) -> None:
    """Refuse a network that this machine cannot hold, before it is built.

    Args:
        build: Function that builds it; where the default device is meta, it is not called, since
            `build_on_meta` is counting already.

    Raises:
        TooLarge: As `build_on_meta`.
        ValueError: As `build`.
    """
    if torch.get_default_device().type != "meta":
        build_on_meta(build)


@contextmanager
def _counting(max_bytes: int) -> Iterator[None]:
    """Stop the building of a network, in this thread, that exceeds the budget."""
    thread, num_bytes, count = threading.get_ident(), 0, 0

    def add(_: nn.Module, name: str, part: Tensor | nn.Module | None) -> None:
        nonlocal num_bytes, count
        if threading.get_ident() != thread or part is None:
            return
        count += 1
        if isinstance(part, Tensor):
            num_bytes += part.numel() * part.element_size()
        if num_bytes > max_bytes:
            raise TooLarge(
                f"the config describes a network of more than {num_bytes / 1e9:,.1f} GB; expected "
                f"at most {max_bytes / 1e9:,.1f} GB, the memory of this machine"
            )
        if count > MAX_TENSORS:
            raise TooLarge(
                f"the config describes a network of more than {MAX_TENSORS:,} tensors and modules; "
                "expected fewer layers or blocks"
            )

    hooks = [
        registration.register_module_parameter_registration_hook(add),
        registration.register_module_buffer_registration_hook(add),
        registration.register_module_module_registration_hook(add),
    ]
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:  # too many elements to be counted
        if not (isinstance(error, OverflowError) or "overflow" in str(error).lower()):
            raise
        raise TooLarge(
            "the config describes a tensor with more elements than a number can count"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()


def table_of(compute: Callable[[], Tensor], shape: Sequence[int]) -> Tensor:
    """What a function computes; on the meta device a tensor of its shape, without a computation.

    Args:
        compute: Function that computes a table.
        shape: Shape of the table.
    """
    return torch.empty(shape) if torch.get_default_device().type == "meta" else compute()


def derive(
    module: nn.Module, name: str, compute: Callable[[], Tensor], shape: Sequence[int]
) -> None:
    """Register a buffer that follows from the config, so that no file holds it.

    On the meta device it is only counted; `fill` computes it.

    Args:
        module: Module that gets the buffer.
        name: Name of the buffer.
        compute: Function that computes it, such as a `functools.partial`.
        shape: Shape of what it computes.
    """
    module.register_buffer(name, table_of(compute, shape), persistent=False)
    vars(module).setdefault("_derived", {})[name] = compute


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network that was built on the meta device its weights, on the CPU.

    Every tensor is a copy, of the type that the network has it in; derived buffers are computed;
    parameters that were one stay one.

    Args:
        module: Network from `build_on_meta`.
        state: Its whole state dict.

    Raises:
        Misfit: If names or shapes are not those of the network, or tensors that the network shares
            have different values.
    """
    expected = module.state_dict()
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    wrong = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if missing or unexpected or wrong:
        raise Misfit(
            f"missing {sorted(missing) or 'none'}, unexpected {sorted(unexpected) or 'none'}, "
            f"other shape {sorted(wrong) or 'none'}"
        )
    own = {
        name: state[name].detach().to("cpu", tensor.dtype, copy=True).contiguous()
        for name, tensor in expected.items()
    }
    shared = _shared_parameters(module)
    module.load_state_dict(own, assign=True)
    for first, others in shared.items():
        _share(module, first, others)
    for part in module.modules():
        for name, compute in vars(part).get("_derived", {}).items():
            with torch.device("cpu"):
                part.register_buffer(name, compute(), persistent=False)
    empty = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    assert not empty, f"buffers of no file must be registered by `derive`: {empty}"


def installed_file(package: str, file: str) -> Path | None:
    """A file of an installed Python package, which is never imported; None if it is not there.

    Args:
        package: Import name of the package.
        file: Path of the file inside the package.
    """
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


def _shared_parameters(module: nn.Module) -> dict[str, list[str]]:
    """Names of parameters that are one object: the first name, and the others."""
    first: dict[int, str] = {}
    shared: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            shared.setdefault(first[id(parameter)], []).append(name)
        first.setdefault(id(parameter), name)
    return shared


def _share(module: nn.Module, first: str, others: list[str]) -> None:
    """Make parameters one object again."""
    kept = module.get_parameter(first)
    for name in others:
        if not torch.equal(module.get_parameter(name), kept):
            raise Misfit(f"{name} differs from {first}, which is the same parameter")
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, kept)
