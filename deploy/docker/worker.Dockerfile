# Ray head, Ray worker and dispatcher; what a container does is its command.
# CPU:  docker build -f deploy/docker/worker.Dockerfile -t featurespeed-worker:0.1.0 .
# CUDA: the same with -t featurespeed-worker:0.1.0-cuda --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
#       (torch's wheels bring CUDA's libraries; the host brings the driver and the NVIDIA container toolkit)
# To pin the base by digest: docker buildx imagetools inspect $PYTHON, then --build-arg PYTHON=python@sha256:...
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY . /source
RUN TORCH_INDEX_URL=${TORCH_INDEX_URL} sh /source/deploy/docker/install.sh worker /source /opt/featurespeed

FROM ${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin featurespeed \
    && install -d -o featurespeed -g featurespeed /data
COPY --from=build /opt/featurespeed /opt/featurespeed
# KubeRay starts Ray in a login shell, whose PATH is that of /etc/profile
RUN ln -s /opt/featurespeed/bin/ray /opt/featurespeed/bin/featurespeed /usr/local/bin/
ENV PATH=/opt/featurespeed/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp FEATURESPEED_DATA_DIR=/data \
    RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 OMP_NUM_THREADS=1
USER 10001:10001
# The raylet, wherever --node-manager-port=6380 is given
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import socket as s; s.create_connection((s.gethostbyname(s.gethostname()), 6380), 3)"]
CMD ["ray", "start", "--head", "--port=6379", "--node-manager-port=6380", "--include-dashboard=false", "--block"]
