# docker build -f docker/cpu.Dockerfile -t alexnet_jax .
# docker run --rm -v "$PWD/runs:/alexnet_jax/runs" alexnet_jax train --config=experiments/quickstart.py --workdir=runs/quickstart
FROM python:3.12-slim
WORKDIR /alexnet_jax
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .
# To use data sets of the host: -v ~/tensorflow_datasets:/data
ENV TFDS_DATA_DIR=/data
ENTRYPOINT ["python", "-m", "alexnet_jax"]
CMD ["doctor"]
