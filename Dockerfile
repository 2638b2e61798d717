# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm

# A CPU image stays small with the default; for a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    HF_HOME=/var/cache/deltaw \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DELTAW_LOG_FORMAT=json

WORKDIR /app

# Dependencies change rarely and are large: a layer of their own, before the code.
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --disable-pip-version-check \
        ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} "$(grep ^torch== requirements.lock)" \
    && python -m pip install --no-cache-dir --disable-pip-version-check -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY schemas ./schemas
COPY deltaw_client ./deltaw_client
COPY service ./service
RUN python -m pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && useradd --system --uid 10001 --home-dir /nonexistent deltaw \
    && install -d -o deltaw -g deltaw /var/cache/deltaw

USER 10001
EXPOSE 8000
VOLUME /var/cache/deltaw
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["deltaw", "healthcheck"]

# A container's address is public to its network: give DELTAW_API_KEYS, or DELTAW_INSECURE=true behind a proxy.
ENV DELTAW_HOST=0.0.0.0
ENTRYPOINT ["deltaw"]
CMD ["serve"]
