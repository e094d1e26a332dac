"""One rank of the run behind `test_ranks.py`: `ranks_worker.py RANK RANKS RENDEZVOUS OUTPUT`.

Every rank takes its share of the same batches, computes each case with the convention of DDP
(losses and parameter gradients averaged over ranks), and writes what it found. With one rank this
is the single process on the whole batch.
"""

import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from tessella.tokenizers.base import Quantizer
from tessella.tokenizers.quantizers.bsq import BSQ, BSQConfig
from tessella.tokenizers.quantizers.ema_vq import EMAVQ, EMAVQConfig
from tessella.tokenizers.quantizers.lfq import LFQ, LFQConfig
from tessella.tokenizers.quantizers.vq import VQ, VQConfig
from tessella.train.losses import LeCam, adaptive_weight

BATCH, TOKENS, WIDTH, STEPS = 4, 16, 6, 3


def batch(step: int, rank: int, ranks: int) -> Tensor:
    """This rank's rows of the global batch, (BATCH / ranks, TOKENS, WIDTH)."""
    whole = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(step))
    return whole.chunk(ranks)[rank]


def averaged(value: Tensor, ranks: int) -> Tensor:
    """The mean over ranks, as DDP averages gradients."""
    value = value.detach().clone()
    if ranks > 1:
        dist.all_reduce(value)
    return value / ranks


def quantizer_case(quantizer: Quantizer, rank: int, ranks: int) -> Iterator[tuple[str, Tensor]]:
    """Losses, gradient of a projection in front, and final state after a few training steps."""
    torch.manual_seed(0)
    projection = nn.Linear(WIDTH, quantizer.dim)
    for step in range(STEPS):
        projection.zero_grad()
        quantizer.zero_grad()
        out = quantizer(projection(batch(step, rank, ranks)) * 0.05)
        (sum(out.losses.values()) + out.quantized.square().mean()).backward()
        for name, loss in out.losses.items():
            yield f"{step}.loss.{name}", averaged(loss, ranks)
        yield f"{step}.projection_gradient", averaged(projection.weight.grad, ranks)
        for name, parameter in quantizer.named_parameters():
            yield f"{step}.gradient.{name}", averaged(parameter.grad, ranks)
        for name, value in quantizer.state_dict().items():
            yield f"{step}.state.{name}", value.clone()


def lecam_case(rank: int, ranks: int) -> Iterator[tuple[str, Tensor]]:
    """LeCam penalty of two linear logit maps, its gradient and the anchors."""
    torch.manual_seed(0)
    head, lecam = nn.Linear(WIDTH, 1), LeCam(0.5)
    for step in range(STEPS):
        head.zero_grad()
        loss = lecam(head(batch(step, rank, ranks)) + 1, head(batch(step + 10, rank, ranks)) - 1)
        loss.backward()
        yield f"{step}.loss", averaged(loss, ranks)
        yield f"{step}.gradient", averaged(head.weight.grad, ranks)
        yield f"{step}.real", lecam.real.clone()
        yield f"{step}.fake", lecam.fake.clone()


def adaptive_case(rank: int, ranks: int) -> Iterator[tuple[str, Tensor]]:
    """The adaptive adversarial weight at a linear layer."""
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 2, bias=False)
    out = layer(batch(0, rank, ranks))
    yield "weight", adaptive_weight(out.square().mean(), out.mean(), layer.weight, 1e4)


def run(rank: int, ranks: int) -> dict[str, Tensor]:
    """Every case by name."""
    torch.manual_seed(0)
    cases: dict[str, Quantizer] = {
        "lfq": LFQ(LFQConfig(bits=8)),
        "lfq_groups": LFQ(LFQConfig(bits=8, entropy_group_bits=3)),
        "bsq": BSQ(BSQConfig(bits=8, entropy_group_bits=4, inverse_temperature=10.0)),
        "vq": VQ(VQConfig(codebook_size=16, dim=4, entropy_temperature=0.01)),
        "vq_sphere": VQ(VQConfig(codebook_size=16, dim=4, normalize=True)),
        "ema_vq": EMAVQ(EMAVQConfig(codebook_size=16, dim=4, decay=0.5, revival_share=0.8)),
        "ema_vq_no_init": EMAVQ(
            EMAVQConfig(codebook_size=16, dim=4, decay=0.5, revival_share=0.6, data_init=False)
        ),
        "ema_vq_sphere": EMAVQ(
            EMAVQConfig(codebook_size=16, dim=4, decay=0.5, revival_share=0.8, normalize=True)
        ),
    }
    for name in ("vq", "vq_sphere"):
        nn.init.normal_(cases[name].codebook, std=0.05)
    found = {}
    for case, quantizer in cases.items():
        for name, value in quantizer_case(quantizer, rank, ranks):
            found[f"{case}.{name}"] = value.contiguous()
    for case, values in (
        ("lecam", lecam_case(rank, ranks)),
        ("adaptive", adaptive_case(rank, ranks)),
    ):
        for name, value in values:
            found[f"{case}.{name}"] = value.contiguous()
    return found


def main() -> None:
    """Run as one rank."""
    rank, ranks, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
        )
    found = run(rank, ranks)
    save_file(found, output)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
