import keras
from keras.applications.resnet50 import decode_predictions, preprocess_input

model = keras.applications.ResNet50()
probabilities = model.predict(preprocess_input(images))
names = decode_predictions(probabilities)
