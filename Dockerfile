# One image for every process of Tokencast; the command chooses: api, worker, upstream-sim, settings, … It contains
# OpenTelemetry, and not the embedded server of `tokencast dev`.
#
#   docker build -t tokencast .
#
# Dependencies come hash-locked, those of the build too. Only the finished environment reaches the last stage: no source
# tree, no build tool, no package cache.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# An environment without a pip of its own: the base image's pip installs into it from outside.
RUN python -m venv --without-pip /opt/tokencast
# The dependencies change rarely and the code often: in this order, a change of code rebuilds one small layer.
COPY requirements-image.lock ./
RUN python -m pip --python /opt/tokencast/bin/python install --require-hashes -r requirements-image.lock
COPY requirements-build.lock ./
RUN python -m pip install --require-hashes -r requirements-build.lock
COPY clients/python clients/python
COPY pyproject.toml README.md LICENSE tokencast_broker.py ./
COPY broker broker
COPY worker worker
COPY api api
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels ./clients/python . \
 && python -m pip --python /opt/tokencast/bin/python install --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
# The OpenAI SDK trusts the system's certificates and brings none of its own. Python's slim images hold them already;
# a smaller base may not, and then every upstream call would fail at TLS.
RUN test -s /etc/ssl/certs/ca-certificates.crt \
 || { apt-get update \
   && apt-get install --yes --no-install-recommends ca-certificates \
   && rm -rf /var/lib/apt/lists/*; }
# A number, not a name, below in USER: an orchestrator that insists on non-root can check it without starting anything.
RUN groupadd --system --gid 10001 tokencast \
 && useradd --uid 10001 --gid tokencast --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tokencast
COPY --from=build /opt/tokencast /opt/tokencast
# The root file system is meant to be mounted read-only: the byte code was compiled at build time, home is /tmp.
# HOST: the loopback default would be unreachable from outside the container; without keys the gateway still refuses to
# start on it unless TOKENCAST_ALLOW_OPEN=1 says that something else keeps strangers out.
ENV PATH=/opt/tokencast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HOST=0.0.0.0 \
    PORT=8000
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["tokencast"]
CMD ["api"]
