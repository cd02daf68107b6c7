"""The two-tower network and its update in PyTorch: `groups=2`, channels last, eager or compiled."""

import argparse

import numpy as np
import torch
from torch import nn
from worker import serve


def alexnet() -> nn.Sequential:
    """The network of section 3.5 of the paper; PyTorch divides `alpha` by the window size."""
    lrn = dict(size=5, alpha=5e-4, beta=0.75, k=2.0)
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, 4, padding=2), nn.ReLU(), nn.LocalResponseNorm(**lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(**lrn),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, 1000),
    )  # fmt: skip


def main() -> None:
    """Builds the network and serves it to `run.py`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.normal(0, 60, (args.batch_size, 3, 224, 224)).astype(np.float32)
    x = torch.from_numpy(images)
    y = torch.from_numpy(generator.integers(0, 1000, args.batch_size))
    net = alexnet()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.01)
    net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    run = torch.compile(net) if args.compile else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def train(steps: int) -> None:
        net.train()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(run(x), y).backward()
            optimizer.step()

    def forward(steps: int) -> None:
        net.eval()
        with torch.inference_mode():
            for _ in range(steps):
                run(x)

    about = {"version": torch.__version__, "threads": str(torch.get_num_threads())}
    serve({"train": train, "forward": forward}, about | {"layout": "channels last"})


if __name__ == "__main__":
    main()
