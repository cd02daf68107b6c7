import alexnet_jax

net = alexnet_jax.load("bvlcalexnet.onnx")
predictions = net.predict(images)
