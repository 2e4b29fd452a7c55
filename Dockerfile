# Images of the service (the default target), of it with Ray (--target ray) and of the trainer (--target train);
# docs/containers.md tells what is in them.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS torch
# What torch is built for, its release, and options for pip, for example where it finds a CPU-only torch.
ARG DEVICE=cpu
ARG TORCH=torch==2.13.0
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY deploy/image/check-torch.sh deploy/image/locked.sh deploy/image/slim.sh deploy/image/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-compile --only-binary :all: $PIP_ARGS "$TORCH" \
    && sh deploy/image/check-torch.sh "$DEVICE" \
    && sh deploy/image/slim.sh
# Beside the environment that ships: what builds our wheel and the SBOM.
COPY requirements/image.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/tools \
    && python -m pip --python /opt/tools/bin/python install --require-hashes --no-deps --only-binary :all: $PIP_ARGS \
        -r requirements/image.txt

# Our own code, for the environments below to take.
FROM scratch AS code
COPY pyproject.toml README.md LICENSE deploy/image/own.sh deploy/image/sbom.py ./
COPY common common
COPY service service

# Of what torch asks for, TorchScript loads CUDA and typing-extensions alone.
FROM torch AS serve-environment
COPY requirements/serve.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    sh deploy/image/locked.sh serve filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy triton
COPY --from=code / ./
RUN sh own.sh service.__main__ service.calibrate service.score.__main__ service.detector_client

# Ray loads some of it too. Its processes are begun by the command, and each by a module of its own.
FROM torch AS ray-environment
COPY requirements/ray.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    sh deploy/image/locked.sh ray mpmath networkx setuptools sympy triton
COPY --from=code / ./
RUN sh own.sh service.ray_app service.score.__main__ ray.scripts.scripts ray.serve.scripts ray.dashboard.dashboard

FROM torch AS train-environment
COPY requirements/train.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    sh deploy/image/locked.sh train
COPY --from=code / ./
COPY model model
RUN sh own.sh model.pipeline model.evaluate

FROM ${PYTHON_IMAGE} AS base
RUN groupadd --gid 10001 glow \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin glow \
    && install -d -o glow -g glow /cache
ENV PATH=/opt/venv/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.title="glow-service" org.opencontainers.image.licenses="MIT"

FROM base AS train
ENV HOME=/tmp MPLCONFIGDIR=/tmp TMPDIR=/runs
COPY --from=train-environment /opt/venv /opt/venv
COPY --from=train-environment /own /opt/venv
WORKDIR /data
ENTRYPOINT ["python", "-m", "model.pipeline", "--runs", "/runs", "--models", "/models"]

FROM base AS ray
# What `ray start` of an operator needs as well: a home that can be written, and the command, which is on the path.
ENV GLOW_HOST=0.0.0.0 HOME=/tmp RAY_USAGE_STATS_ENABLED=0
COPY --from=ray-environment /opt/venv /opt/venv
COPY --from=ray-environment /own /opt/venv
WORKDIR /
EXPOSE 8000
ENTRYPOINT ["python", "-m", "service.ray_app"]

FROM base AS serve
ENV GLOW_HOST=0.0.0.0
COPY --from=serve-environment /opt/venv /opt/venv
# Our own code is the last and the smallest layer.
COPY --from=serve-environment /own /opt/venv
WORKDIR /
EXPOSE 8000
# Ready, not merely alive: what waits for a healthy container wants answers from it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-ISc", "import http.client, os, sys; service = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('GLOW_PORT', 8000)), timeout=4); service.request('GET', '/readyz'); sys.exit(service.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
