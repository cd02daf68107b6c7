import alexnet_jax

config = alexnet_jax.get_config("quickstart")
result = alexnet_jax.train(config, "runs/mine", data=(x, y), validation=(xv, yv))
