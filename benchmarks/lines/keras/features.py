import keras

model = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
features = model.predict(images)
