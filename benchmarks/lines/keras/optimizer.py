import keras

model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
adam = keras.optimizers.Adam(1e-3)
model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x, y, batch_size=64, epochs=20, validation_data=(xv, yv))
