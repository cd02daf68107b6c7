from torchvision.models import alexnet
from torchvision.models.feature_extraction import create_feature_extractor

model = alexnet(num_classes=10).eval()
features = create_feature_extractor(model, {"classifier.5": "fc7"})(images)["fc7"]
