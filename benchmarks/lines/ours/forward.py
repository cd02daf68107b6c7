import alexnet_jax

net = alexnet_jax.create(num_classes=10)
logits = net(images)
