# One image for every part of docker-compose.yml but the broker: what a container is, its command says.
# BASE may be any image with Python 3.11 and glibc.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
COPY requirements.lock /src/
RUN python3.11 -m venv /opt/agentlink \
 && /opt/agentlink/bin/pip install --no-cache-dir --require-hashes -r /src/requirements.lock
COPY . /src/
RUN /opt/agentlink/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM ${BASE}
COPY --from=build /opt/agentlink /opt/agentlink
# A number, not a name: what runs it can tell that it is not root. The home is a volume, which is born with its owner.
RUN mkdir -m 0700 /var/lib/agentlink && chown 10001:10001 /var/lib/agentlink
USER 10001:10001
WORKDIR /var/lib/agentlink
ENV PATH=/opt/agentlink/bin:$PATH \
    HOME=/var/lib/agentlink \
    AGENTLINK_HOME=/var/lib/agentlink \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["agentlink", "health"]
CMD ["agentlink", "up"]
