# docker build -f deploy/docker/api.Dockerfile -t featurespeed-api:0.1.0 .
# To pin the base by digest: docker buildx imagetools inspect $PYTHON, then --build-arg PYTHON=python@sha256:...
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
COPY . /source
RUN sh /source/deploy/docker/install.sh api /source /opt/featurespeed

FROM ${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin featurespeed \
    && install -d -o featurespeed -g featurespeed /data
COPY --from=build /opt/featurespeed /opt/featurespeed
ENV PATH=/opt/featurespeed/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp FEATURESPEED_DATA_DIR=/data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["featurespeed", "serve", "--no-dispatcher", "--host", "0.0.0.0", "--port", "8000"]
