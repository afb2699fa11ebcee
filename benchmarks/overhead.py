"""What a training step costs the host beside the network: the time in which a GPU would have nothing to do.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py
    OMP_NUM_THREADS=1 python benchmarks/overhead.py --network B/32 --batch 64

The loop is `justimage.train`'s, on images in memory. Replaced are the network (by its number of weights and of layers that
drop, each of one number), and what a GPU computes: noise, normalisation, loss. torchrun sets OMP_NUM_THREADS to 1, too.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
from torch import Tensor, nn

from justimage import data, training
from justimage.architectures import architecture
from justimage.dropout import Dropout
from justimage.normalization import Normalization
from justimage.recipe import Parallelism, Recipe, Training
from justimage.transformer import JiT


class Stub(nn.Module):
    """As many weights and dropouts as a network, and nothing to compute."""

    def __init__(self, net: JiT) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(1) for _ in net.parameters())
        self.drops = nn.ModuleList(Dropout(0.2) for m in net.modules() if isinstance(m, Dropout))
        self.classes, self.shape = net.classes, net.shape

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack(list(self.weights)).sum() + torch.zeros(())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="B/16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    o = parser.parse_args()
    network = architecture(o.network, classes=1000, dropout=0.2)
    images = torch.randint(0, 256, (o.batch, network.channels, *network.size), dtype=torch.uint8)
    source = data.ArraySource(images, torch.randint(0, 1000, (o.batch,)), [str(i) for i in range(1000)], "random")
    recipe = Recipe(
        model=network,
        training=Training(total_images=o.batch * o.steps, batch=o.batch, warmup=0, precision="fp32", gradient_clip=1.0),
        parallelism=Parallelism(compile=False, workers=0),
    )
    with torch.device("meta"):
        net = Stub(JiT(network))
    net = net.to_empty(device="cpu")
    for weight in net.parameters():
        nn.init.zeros_(weight)
    x, t, drop = torch.zeros(o.batch, *net.shape), torch.zeros(o.batch), torch.zeros(o.batch, dtype=torch.bool)
    loss = lambda diffusion, net, batch: net(x, t, batch.condition).expand(len(x))
    with (
        mock.patch.object(training, "draw", lambda *_: (t, x, drop)),
        mock.patch.object(Normalization, "normalize", lambda self, images: x),
    ):
        state = training.init_state(recipe, net=net)
        wall, busy, waited = [], [], []
        began = time.perf_counter(), time.thread_time()
        for step in training.train(recipe, source, state, loss=loss):
            wall.append(time.perf_counter() - began[0])
            busy.append(time.thread_time() - began[1])
            waited.append(step.data_seconds)
            began = time.perf_counter(), time.thread_time()
    print(f"{o.network}, {o.batch} images, torch {torch.__version__}, {torch.get_num_threads()} threads")
    shown = (1e3 * statistics.median(seconds[5:]) for seconds in (busy, wall, waited))
    print("a step of the host: {:.2f} ms of the thread's own time; {:.2f} ms passed, of them {:.2f} until the next batch was "
          "there, for which no network gave time (medians)".format(*shown))  # fmt: skip


if __name__ == "__main__":
    main()
