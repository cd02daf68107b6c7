from torchvision.models import alexnet

model = alexnet(num_classes=10)
kernels = model.features[0].weight
