from torchvision.models import alexnet

model = alexnet(num_classes=10).eval()
logits = model(images)
