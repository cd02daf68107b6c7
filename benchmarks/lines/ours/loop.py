import jax
import optax

import alexnet_jax

net = alexnet_jax.create(config="quickstart")
optimizer = optax.adam(1e-3)
params = net.variables["params"]
state = optimizer.init(params)


def loss(params, images, labels, key):
    logits = net.apply({"params": params}, images, dropout_key=key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def step(params, state, images, labels, key):
    gradients = jax.grad(loss)(params, images, labels, key)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


for number, (images, labels) in enumerate(batches):
    params, state = step(params, state, images, labels, jax.random.key(number))
net = net.replace({"params": params})
