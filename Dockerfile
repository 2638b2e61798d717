FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app

# This stage installs the code to /installed, so that the image contains neither the sources nor build files.
FROM base AS code
COPY . /src
RUN python -m pip install --no-deps --root /installed /src

FROM base
# The default installs the small CPU build. For a GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Dependencies change rarely and are large, so they have their own layer before the code. The service needs neither
# torch's tests nor its headers, which take 180 MB.
COPY requirements.lock ./
RUN python -m pip install \
        ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} "$(grep ^torch== requirements.lock)" \
    && python -m pip install -r requirements.lock \
    && cd "$(python -c 'import torch; print(torch.__path__[0])')" \
    && rm -rf test include bin/*[Tt]est*

COPY --from=code /installed /
RUN groupadd --system --gid 10001 deltaw \
    && useradd --system --uid 10001 --gid deltaw --home-dir /nonexistent deltaw \
    && install -d -o deltaw -g deltaw /var/cache/deltaw \
    && install -d -o deltaw -g deltaw -m 700 /var/lib/deltaw

# The service writes only to the volumes, so the root file system can be read-only. A container's address is public
# to its network: set DELTAW_API_KEYS, or DELTAW_INSECURE=true behind a proxy.
ENV OMP_WAIT_POLICY=PASSIVE \
    HF_HOME=/var/cache/deltaw \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/deltaw/torch \
    DELTAW_ADAPTERS=/var/lib/deltaw \
    DELTAW_LOG_FORMAT=json \
    DELTAW_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
VOLUME /var/cache/deltaw /var/lib/deltaw
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["deltaw", "healthcheck"]
ENTRYPOINT ["deltaw"]
CMD ["serve"]

# Labels come last, so that a new revision does not rebuild the layers above.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deltaw" \
      org.opencontainers.image.description="What a context does to a language model, as an update of its weights, over HTTP" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
