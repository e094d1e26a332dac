"""What a launcher or the environment asks of a training: obeyed where it fits, refused otherwise.

`accelerate launch` hands its options over as environment variables, and accelerate reads some of
them in place of what a script asks for. A run is what its config says, so that config.yaml tells
how a model was made: a variable that asks for something else ends the run before its first step.
"""

import os
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env

from ..config import ConfigError

Precision = Literal["auto", "no", "bf16"]

_PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
"""Variables that make accelerate spread a model over processes, and what they stand for."""


def check_environment(accumulation: int) -> None:
    """Refuse an environment that asks for another training than the config does.

    Args:
        accumulation: `run.gradient_accumulation_steps` of the config.

    Raises:
        ConfigError: With the variable, its value, and the key of the config that it contradicts.
    """
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    steps = os.environ.get(name, "").strip()
    if steps and steps != str(accumulation):
        raise ConfigError(
            f"{name}={steps} in the environment, but run.gradient_accumulation_steps is "
            f"{accumulation}; set that key and unset the variable"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("", "no"):
        raise ConfigError(
            f"ACCELERATE_DYNAMO_BACKEND={backend} (accelerate launch --dynamo_backend) is not "
            "read; set run.compile=true and leave the option out"
        )
    for name, what in _PLUGINS.items():
        if parse_flag_from_env(name):
            raise ConfigError(
                f"{name}={os.environ[name]}: these trainings copy the model to every process and "
                f"cannot use {what}; launch without it"
            )


def choose_precision(asked: Precision) -> Literal["no", "bf16"]:
    """Precision of a run: what the config asks for, else the launcher, else what is native here.

    `accelerate launch` always says `no` if nothing else is said, so `no` counts as unsaid.

    Args:
        asked: `run.mixed_precision` of the config.

    Raises:
        ConfigError: If the launcher asks for a precision that no training has, or for another one
            than the config.
    """
    name = "ACCELERATE_MIXED_PRECISION"
    launched = (os.environ.get(name) or "no").lower()
    where = f"{name}={launched} (accelerate launch --mixed_precision)"
    if launched not in ("no", "bf16"):
        raise ConfigError(f"{where}: expected no or bf16")
    if launched == "bf16" and asked == "no":
        raise ConfigError(f"{where}, but run.mixed_precision is 'no'; change one of them")
    if asked == "auto":
        return "bf16" if launched == "bf16" else native_precision()
    return asked


def native_precision() -> Literal["no", "bf16"]:
    """Whether to use bf16: where it is native (CUDA sm_80 up, AVX512-BF16, AMX)."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16" if native else "no"


def slow_precision(precision: str) -> str:
    """A line about bf16 on a device without units for it; "" elsewhere."""
    if precision != "bf16" or native_precision() == "bf16":
        return ""
    return (
        "run.mixed_precision: bf16 has no units of its own on this device and is emulated, which "
        "makes a step slower than fp32 (by 25 % where it was measured); `no` is faster here"
    )
