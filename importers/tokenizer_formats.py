"""Names and unwritten settings of public tokenizer checkpoints.

A layout says where a public state dict keeps each tensor of ours; a format adds what no tensor
shows: pixel range, shortcut, padding, distance. Read from the public code of markweberdev/maskbit,
CompVis/taming-transformers, FoundationVision/LlamaGen, TencentARC/SEED-Voken,
bytedance/1d-tokenizer, ZeWang95/BinaryLatentDiffusion and haoosz/BiGR; tables only, no line of
theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a public state dict keeps what.

    Args:
        levels: Levels of encoder and decoder.
        blocks: Residual blocks of a level.
        resample: Convolution at the end of a level of encoder and decoder.
        mid: Entries between levels and head, by number.
    """

    levels: tuple[str, str] = ("down", "up")
    blocks: str = "block"
    resample: tuple[str, str]
    mid: tuple[str, ...]

    def name(self, ours: str, num_levels: int, fine_first: bool) -> str:
        """Public name of one of our tensors.

        Args:
            ours: Its name in `VQGAN.state_dict()`, where decoder levels run from coarse to fine.
            num_levels: Levels of the network.
            fine_first: Whether the public decoder numbers its levels from fine to coarse.
        """
        level = dict(zip(("encoder", "decoder"), self.levels, strict=True))
        resample = dict(zip(("encoder", "decoder"), self.resample, strict=True))

        def place(side: str, number: str) -> int:
            turned = side == "decoder" and fine_first
            return num_levels - 1 - int(number) if turned else int(number)

        names: list[str | int]
        match ours.split("."):
            case ["quantizer", "codebook"]:
                return "quantize.embedding.weight"
            case [side, "levels", i, "blocks", block, leaf, *rest]:
                names = [side, level[side], place(side, i), self.blocks, block, _leaf(leaf)]
            case [side, "levels", i, "attention", block, leaf, *rest]:
                names = [side, level[side], place(side, i), "attn", block, _leaf(leaf)]
            case [side, "levels", i, "resample", "conv", *rest]:
                names = [side, level[side], place(side, i), resample[side]]
            case [side, "adaptive_norms", i, leaf, *rest]:
                names = [side, "adaptive", place(side, i), _leaf(leaf)]
            case [side, "mid", i, leaf, *rest]:
                entry = self.mid[int(i)] if int(i) < len(self.mid) else f"mid.{i}"
                names = [side, entry, _leaf(leaf)]
            case _:
                return ours
        return ".".join(map(str, [*names, *rest]))


def _leaf(ours: str) -> str:
    """Last part of a name: what all layouts call the parts of a block."""
    public = {"shortcut": "nin_shortcut", "out": "proj_out", "scale": "gamma", "bias": "beta"}
    return public.get(ours, ours)


MAX_MID = 16
"""Largest number of entries between levels and head."""
VQGAN_PLUS = Layout(
    blocks="res_blocks",
    resample=("down_conv", "upsample_conv"),
    mid=tuple(f"mid.res_blocks.{i}" for i in range(MAX_MID)),
)
ONE_D_MASKGIT = Layout(
    resample=("downsample", "upsample_conv"), mid=tuple(f"mid.{i}" for i in range(MAX_MID))
)
TAMING = Layout(
    resample=("downsample.conv", "upsample.conv"), mid=("mid.block_1", "mid.attn_1", "mid.block_2")
)
LLAMAGEN = Layout(
    levels=("conv_blocks", "conv_blocks"),
    blocks="res",
    resample=("downsample.conv", "upsample.conv"),
    mid=tuple(f"mid.{i}" for i in range(MAX_MID)),
)
OPEN_MAGVIT2 = Layout(
    resample=("downsample", "upsample.conv1"),
    mid=tuple(f"mid_block.{i}" for i in range(MAX_MID)),
)


@dataclass(frozen=True, kw_only=True)
class PublicFormat:
    """What a format means.

    Args:
        layouts: The layouts that it occurs in; none: each network is one numbered
            list of modules, as `public_flat.py` reads it.
        quantizers: The quantizers that it occurs with.
        settings: Fields of `VQGANConfig` by path that no shape shows, where they are not those of
            `USUAL_SETTINGS`.
        drop: Patterns of keys to leave out, each with the reason.
        dotless_average: The file may hold `model_ema.` plus each parameter's name without dots.
    """

    layouts: tuple[Layout, ...]
    quantizers: tuple[Literal["vq", "lfq", "bernoulli"], ...]
    settings: Mapping[str, str | bool]
    drop: tuple[tuple[str, str], ...] = ()
    dotless_average: bool = False

    def setting(self, path: str) -> str | bool:
        """Value of a field that no shape shows."""
        return self.settings.get(path, USUAL_SETTINGS[path])


USUAL_SETTINGS: Mapping[str, str | bool] = {
    "pixel_range": "symmetric",
    "autoencoder.shortcut": "projection",
    "autoencoder.downsample": "conv",
    "autoencoder.upsample": "nearest",
    "autoencoder.adaptive_norm": False,
    "autoencoder.head_activation": True,
    "quantizer.normalize": False,
}
"""All that no shape shows (only VQ has `normalize`)."""
_LOSS = (r"loss\..*", "training losses and discriminator")
_TABLE = "table that follows from the number of bits"
FORMATS: dict[str, PublicFormat] = {
    "maskbit-tokenizer": PublicFormat(
        layouts=(VQGAN_PLUS,),
        quantizers=("vq", "lfq"),
        settings={"pixel_range": "unit", "autoencoder.shortcut": "legacy"},
        drop=((r"quantize\.(codebook|bits_to_indices)", _TABLE),),
    ),
    "maskgit-vq": PublicFormat(
        layouts=(VQGAN_PLUS, ONE_D_MASKGIT),
        quantizers=("vq",),
        settings={
            "pixel_range": "unit",
            "autoencoder.shortcut": "legacy",
            "autoencoder.downsample": "avg_pool",
        },
    ),
    "taming-vqgan": PublicFormat(layouts=(TAMING,), quantizers=("vq",), settings={}, drop=(_LOSS,)),
    "llamagen-vq": PublicFormat(
        layouts=(LLAMAGEN,),
        quantizers=("vq",),
        settings={"quantizer.normalize": True},
        drop=((r"quantize\.codebook_used", "usage statistics of training"),),
    ),
    "open-magvit2": PublicFormat(
        layouts=(OPEN_MAGVIT2,),
        quantizers=("lfq",),
        settings={
            "autoencoder.downsample": "conv_symmetric",
            "autoencoder.upsample": "depth_to_space",
            "autoencoder.adaptive_norm": True,
        },
        drop=(
            _LOSS,
            (r"quantize\.(codebook|mask|zero)", _TABLE),
            (r"model_ema\.(decay|num_updates)", "settings of the running average"),
            (r"model_ema\.loss.*", "running average of the discriminator"),
        ),
        dotless_average=True,
    ),
    "bld-ae": PublicFormat(
        layouts=(),
        quantizers=("bernoulli",),
        settings={"pixel_range": "unit", "autoencoder.head_activation": False},
        drop=(
            (r"disc\..*", "discriminator"),
            (r"perceptual\..*", "perceptual network of the losses"),
            (r"ae\.generator\.logsigma\..*", "a head that nothing reads"),
        ),
    ),
}
"""Tokenizer formats by name."""
