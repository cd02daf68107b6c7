import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

model = timm.create_model("resnet50", num_classes=10)
optimizer = create_optimizer_v2(model, "momentum", lr=0.02, weight_decay=5e-4)
loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
for epoch in range(20):
    model.train()
    for images, labels in loader:
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = (model(xv).argmax(1) != yv).float().mean()
