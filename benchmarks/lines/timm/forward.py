import timm

model = timm.create_model("resnet50", num_classes=10).eval()
logits = model(images)
