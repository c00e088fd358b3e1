# fid's page and API. CPU:   docker build -t fid .
# NVIDIA GPUs:               docker build -t fid:cuda --build-arg BASE=nvidia/cuda:12.9.1-base-ubuntu24.04 --build-arg EXTRAS=web,video,gpu .
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
# of pyproject.toml
ARG EXTRAS=web,video
WORKDIR /source
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -m venv /opt/fid
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY LICENSES LICENSES
COPY runtime runtime
COPY trainer trainer
COPY export export
# both builds of ONNX Runtime are one module, and the last one installed stays
RUN /opt/fid/bin/pip install --no-cache-dir ".[${EXTRAS}]" \
    && case ",${EXTRAS}," in *,gpu,*) \
        /opt/fid/bin/pip install --no-cache-dir --force-reinstall --no-deps onnxruntime-gpu ;; \
    esac

FROM ${BASE}
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 10001 --create-home fid \
    && install -d -o fid -g fid /var/cache/fid /data
COPY --from=build /opt/fid /opt/fid
ENV PATH=/opt/fid/bin:$PATH FID_CACHE=/var/cache/fid
USER 10001:10001
WORKDIR /data
# "" leaves the models out: mount a folder with them and let FID_MODELS name it
ARG MODELS="yunet sface"
RUN for model in ${MODELS}; do fid-run models fetch "${model}" || exit 1; done
EXPOSE 8421
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8421/api/health', timeout=4)"]
ENTRYPOINT ["fid-run"]
CMD ["serve", "--host", "0.0.0.0"]
