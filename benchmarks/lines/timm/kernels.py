import timm

model = timm.create_model("resnet50", num_classes=10)
kernels = model.conv1.weight
