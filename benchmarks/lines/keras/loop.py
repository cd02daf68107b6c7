import keras
import tensorflow as tf

model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
optimizer = keras.optimizers.Adam(1e-3)
cross_entropy = keras.losses.SparseCategoricalCrossentropy()
for images, labels in batches:
    with tf.GradientTape() as tape:
        loss = cross_entropy(labels, model(images, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
