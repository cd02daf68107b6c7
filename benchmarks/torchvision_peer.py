"""torchvision's AlexNet on one photograph, as its documentation does it, for benchmarks/answer.py.

torchvision_peer.py save FILE        writes random weights
torchvision_peer.py predict FILE IMAGE   prints the five best classes
torchvision_peer.py time FILE        prints the seconds of the first calls on an array, as JSON
"""

import json
import sys
import time

import torch

# torchvision's wheel is compiled against another build of PyTorch than the CPU one, into which its
# operations do not load. AlexNet uses none, but without their names torchvision is not imported.
_OPS = torch.library.Library("torchvision", "FRAGMENT")
for _name in (
    "nms", "qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward",
    "ps_roi_align", "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward",
    "deform_conv2d", "_deform_conv2d_backward",
):  # fmt: skip
    try:
        _OPS.define(f"{_name}(Tensor a) -> Tensor")
    except RuntimeError:  # It is there.
        break

from PIL import Image  # noqa: E402
from torchvision import models, transforms  # noqa: E402


def network(path: str) -> torch.nn.Module:
    """AlexNet with the weights of a file."""
    net = models.alexnet()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def predict(path: str, image: str) -> None:
    """Prints the five best classes of an image."""
    rule = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        crop = rule(Image.open(image).convert("RGB"))[None]
        best = network(path)(crop).softmax(1)[0].topk(5)
    for value, label in zip(*best, strict=True):
        print(f"{100 * float(value):.1f} %  {int(label)}")


def calls(path: str) -> list[float]:
    """Seconds of successive calls with one image."""
    net, crop, seconds = network(path), torch.rand(1, 3, 224, 224), []
    with torch.no_grad():
        for _ in range(11):
            before = time.perf_counter()
            net(crop).softmax(1).numpy()
            seconds.append(time.perf_counter() - before)
    return seconds


if __name__ == "__main__":
    verb, file, *rest = sys.argv[1:]
    if verb == "save":
        torch.save(models.alexnet().state_dict(), file)
    elif verb == "predict":
        predict(file, *rest)
    else:
        print(json.dumps(calls(file)))
