"""Compiled steps equal eager ones: with and without an adversarial loss, EMA, accumulation.

The runs have the smallest networks that hold every kind of layer, since compiling takes the time.
"""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tessella.config import load_config
from tessella.train.engine import build_accelerator
from tessella.train.tokenizer_recipe import TrainTokenizerConfig
from tessella.train.tokenizer_run import TokenizerRun

COMPILED_ATOL = 1e-5
"""Largest difference of a weight after three steps, in which it moves by up to 3e-3: fused sums
differ in their last float32 digits. AdamW's usual `eps` of 1e-8 would blow up those of a gradient
that is zero but for rounding, such as that of a convolution before a GroupNorm along its scale."""
SMALL = (
    "tokenizer={type: vqgan, resolution: 8, autoencoder: {base_channels: 4,"
    " channel_multipliers: [1], num_res_blocks: 1, norm_groups: 2},"
    " quantizer: {type: lfq, bits: 4}}",
    "losses.perceptual=[]",
    "loss_weights.perceptual=null",
    "run.batch_size_per_device=2",
    "run.gradient_accumulation_steps=2",
    "optimizer={lr: {peak: 1.0e-3, schedule: constant}, eps: 1.0e-3}",
)
PLAIN = ("adversarial=null", "loss_weights.adversarial=null", "loss_weights.lecam=null")
ADAPTIVE = (
    "adversarial={adaptive: true, start_step: 1, lead_steps: 1, ramp_steps: 0, discriminator:"
    " {type: blur, base_channels: 4, num_stages: 1, output_size: 4, norm_groups: 2}}",
)


def trained(words: tuple[str, ...], compiled: bool, config: Path, out: Path) -> dict[str, Tensor]:
    """Every weight after three optimizer steps of two batches each."""
    flag = f"run.compile={str(compiled).lower()}"
    loaded = load_config(TrainTokenizerConfig, config, [*SMALL, *words, flag])
    run = TokenizerRun(loaded, build_accelerator(loaded.run, out))
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        for _ in range(2):
            run.train_batch(torch.rand(2, 3, 8, 8, generator=rng) * 2 - 1)
        run.ema.update(run.tokenizer)
        run.step += 1
    assert ("adaptive_weight" in run.window.sums) == (words == ADAPTIVE)
    return {
        f"{m}.{n}": t.clone() for m, k in run.modules().items() for n, t in k.state_dict().items()
    }


# torch 2.13 warns of its own use of torch.jit when inductor is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("words", [PLAIN, ADAPTIVE], ids=["plain", "adversarial"])
def test_compiled_steps_equal_eager_ones(
    words: tuple[str, ...], reset_accelerate: None, debug_config: Path, tmp_path: Path
) -> None:
    eager = trained(words, False, debug_config, tmp_path)
    compiled = trained(words, True, debug_config, tmp_path)
    assert eager.keys() == compiled.keys() and any(name.startswith("ema.") for name in eager)
    for name, tensor in eager.items():
        assert torch.allclose(compiled[name], tensor, rtol=0, atol=COMPILED_ATOL), name
