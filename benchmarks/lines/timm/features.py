import timm

model = timm.create_model("resnet50", num_classes=0).eval()
features = model(images)
