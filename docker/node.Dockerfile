# A node: Flower's SuperNode with fedsd, its embedded base and PyTorch. The same image serves machines with and without
# a GPU; PyTorch's Linux wheel brings CUDA's libraries along.
#
#   docker build -f docker/node.Dockerfile -t fedsd-node .
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conf conf
COPY fedsd fedsd
COPY fedsd_tiny fedsd_tiny
RUN pip install --no-cache-dir -c constraints.txt . \
    && useradd --create-home --uid 1000 fedsd && mkdir /private && chown fedsd /private

USER fedsd
ENV FLWR_HOME=/home/fedsd/.flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 OMP_NUM_THREADS=1
WORKDIR /home/fedsd
VOLUME /private
ENTRYPOINT ["flower-supernode"]
