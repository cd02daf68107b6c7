import keras

model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x, y, batch_size=64, epochs=20, validation_data=(xv, yv))
