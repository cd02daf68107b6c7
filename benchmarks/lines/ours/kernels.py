import alexnet_jax

net = alexnet_jax.create(num_classes=10)
kernels = net.kernels("conv1")
