"""What PyTorch makes of exported modules; run by Python with torch, without this project.

Usage: torch_side.py FOLDER, in which NAME.py was exported for every NAME.npz with `images`, crops
in uint8, and whole images, `photo0` and so on. Writes NAME.out.npz.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(sys.argv[1])
sys.path.insert(0, str(FOLDER))
torch.manual_seed(0)
for path in sorted(FOLDER.glob("*.npz")):
    module, given = importlib.import_module(path.stem), np.load(path)
    images = torch.from_numpy(given["images"]).permute(0, 3, 1, 2)
    net = module.load()
    with torch.no_grad():
        out = {"logits": net(images).numpy(), "classes": np.array(module.classes())}
        out["float"] = net(images.float()).numpy()
        for name in (name for name in given if name.startswith("photo")):
            crop = module.preprocess(torch.from_numpy(given[name]))
            out[f"crop of {name}"] = crop.numpy()
            out[f"probabilities of {name}"] = net(crop[None]).softmax(1)[0].numpy()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net.train()
        out["training"] = np.stack([net(images).numpy() for _ in range(2)])
        after = net.state_dict()
        out["moved"] = np.array([name for name in after if not after[name].equal(before[name])])
    net.zero_grad()
    net(images).sum().backward()
    out["without_gradient"] = np.array([n for n, p in net.named_parameters() if p.grad is None])
    np.savez(f"{path.with_suffix('')}.out", **out)
