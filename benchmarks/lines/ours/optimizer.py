import optax

import alexnet_jax

config = alexnet_jax.get_config("quickstart")
adam = optax.adam(1e-3)
result = alexnet_jax.train(config, "runs/adam", data=(x, y), validation=(xv, yv), optimizer=adam)
