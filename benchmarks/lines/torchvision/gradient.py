from torchvision.models import alexnet

model = alexnet(num_classes=10).eval()
images.requires_grad_()
model(images).gather(1, classes[:, None]).sum().backward()
gradient = images.grad
