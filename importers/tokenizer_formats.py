"""Names and unwritten settings of public tokenizer checkpoints.

A layout maps each tensor of a Tessella tokenizer to its public name; a format adds the settings
that no tensor shows: pixel range, shortcut, padding, distance. The tables were made by reading the
public code of markweberdev/maskbit, CompVis/taming-transformers, FoundationVision/LlamaGen,
TencentARC/SEED-Voken, bytedance/1d-tokenizer, ZeWang95/BinaryLatentDiffusion and haoosz/BiGR; no
code was copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Public names of the parts of a tokenizer.

    Args:
        levels: Names of the list of levels in the encoder and in the decoder.
        blocks: Name of the list of residual blocks of a level.
        resample: Names of the convolution at the end of a level in the encoder and in the decoder.
        mid: Names of the modules between levels and head, by number.
    """

    levels: tuple[str, str] = ("down", "up")
    blocks: str = "block"
    resample: tuple[str, str]
    mid: tuple[str, ...]

    def name(self, ours: str, num_levels: int, fine_first: bool) -> str:
        """Public name of a tensor of the tokenizer.

        Args:
            ours: Name in `VQGAN.state_dict()`, where decoder levels run from coarse to fine.
            num_levels: Number of levels of the network.
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
    """Public name of a part of a block, which is the same in all layouts."""
    public = {"shortcut": "nin_shortcut", "out": "proj_out", "scale": "gamma", "bias": "beta"}
    return public.get(ours, ours)


MAX_MID = 16
"""Largest number of modules between levels and head."""
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
    """A public tokenizer format.

    Args:
        layouts: Layouts in which files of the format occur; empty: each network is one numbered
            list of modules, which `binary_autoencoder.py` reads.
        quantizers: Types of quantizer that files of the format may hold.
        settings: Values of `VQGANConfig` fields that no shape shows, by path, where they differ
            from `USUAL_SETTINGS`.
        drop: Pairs of a regular expression for keys to leave out and the reason.
        dotless_average: Whether the file may hold a running average of each parameter under
            `model_ema.` and the parameter's name without dots.
    """

    layouts: tuple[Layout, ...]
    quantizers: tuple[Literal["vq", "lfq", "bernoulli"], ...]
    settings: Mapping[str, str | bool]
    drop: tuple[tuple[str, str], ...] = ()
    dotless_average: bool = False

    def setting(self, path: str) -> str | bool:
        """Value of a config field that no shape shows.

        Args:
            path: A key of `USUAL_SETTINGS`.
        """
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
"""Usual values of all config fields that no shape shows (only VQ has `normalize`)."""
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
            (r"ae\.generator\.logsigma\..*", "an output head that nothing reads"),
        ),
    ),
}
"""Tokenizer formats by name."""
