import torch
from torch.nn.functional import cross_entropy
from torchvision.models import alexnet

model = alexnet(num_classes=10)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for images, labels in batches:
    loss = cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
