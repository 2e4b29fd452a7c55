# The service alone: no training half, no compiler, no root.
# The default torch wheel serves on CPU and GPU; PIP_ARGS can name a smaller, CPU-only source of wheels.
FROM python:3.11-slim AS build
ARG PIP_ARGS=""
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Dependencies first, so that a change of our own code rebuilds one small layer.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir service && touch service/__init__.py \
    && pip install --no-cache-dir --disable-pip-version-check $PIP_ARGS ".[serve]" \
    && pip uninstall --yes --quiet glow-service
COPY service service
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GLOW_HOST=0.0.0.0
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin glow && install -d -o glow /cache
USER 10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import httpx, os; httpx.get(f'http://127.0.0.1:{os.environ.get(\"GLOW_PORT\", 8000)}/readyz', trust_env=False, timeout=4).raise_for_status()"]
ENTRYPOINT ["python", "-m", "service"]
