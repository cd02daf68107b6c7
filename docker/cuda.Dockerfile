# docker build -f docker/cuda.Dockerfile -t alexnet_jax:cuda .
# docker run --rm --gpus=all -v "$PWD/runs:/alexnet_jax/runs" -v ~/tensorflow_datasets:/data \
#   alexnet_jax:cuda train --config=experiments/imagenet.py:source --workdir=runs/source
#
# CUDA is installed with JAX, as Python packages. The host needs only NVIDIA's driver and container
# toolkit.
FROM python:3.12-slim
WORKDIR /alexnet_jax
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt \
 && pip install --no-cache-dir "jax[cuda13]==$(python -c 'import importlib.metadata as m; print(m.version("jax"))')"
COPY . .
RUN pip install --no-cache-dir --no-deps .
ENV TFDS_DATA_DIR=/data
ENTRYPOINT ["python", "-m", "alexnet_jax"]
CMD ["doctor"]
