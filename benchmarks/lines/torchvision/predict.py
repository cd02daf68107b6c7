import torch
from torchvision.models import AlexNet_Weights, alexnet

weights = AlexNet_Weights.DEFAULT
model = alexnet(weights=weights).eval()
batch = weights.transforms()(torch.from_numpy(images).permute(0, 3, 1, 2))
with torch.no_grad():
    probabilities = model(batch).softmax(1)
names = [weights.meta["categories"][i] for i in probabilities.argmax(1)]
