import alexnet_jax

net = alexnet_jax.create(num_classes=10)
features = net.features(images, "fc7")
