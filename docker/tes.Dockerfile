# The Training Edge Server: Flower's SuperLink and what the strategy computes with. No PyTorch, no base model; the app
# itself arrives with `flwr run`.
#
#   docker build -f docker/tes.Dockerfile -t fedsd-tes .
FROM python:3.12-slim

COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir -c /tmp/constraints.txt flwr numpy scipy scikit-learn safetensors tomli-w \
    && useradd --create-home --uid 1000 fedsd && mkdir /state && chown fedsd /state

USER fedsd
ENV FLWR_HOME=/state/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 OMP_NUM_THREADS=1
# Run folders land in ./runs of the folder in which the SuperLink was started.
WORKDIR /state
VOLUME /state
EXPOSE 8000
ENTRYPOINT ["flower-superlink", "--disable-runtime-dependency-installation", "--database", "/state/state.db"]
