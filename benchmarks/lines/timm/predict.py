import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

model = timm.create_model("resnet50", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model))
batch = torch.stack([transform(Image.fromarray(image)) for image in images])
with torch.no_grad():
    probabilities = model(batch).softmax(1)
info = ImageNetInfo()
names = [info.index_to_description(int(i)) for i in probabilities.argmax(1)]
