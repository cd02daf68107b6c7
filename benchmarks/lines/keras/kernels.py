import keras

model = keras.applications.ResNet50(weights=None, classes=10, classifier_activation=None)
kernels = model.get_layer("conv1_conv").kernel
