# The image of all pods: docker build --build-arg EXTRA=tpu --build-arg REVISION=$(git rev-parse HEAD) -t IMAGE .
# EXTRA is tpu, cuda, or dev for CPUs.
FROM python:3.11-slim

ARG EXTRA=tpu
WORKDIR /uniser-jax

# Packages change less often than code: the second build takes seconds.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir uniser_jax && touch uniser_jax/__init__.py \
    && pip install --no-cache-dir -c constraints.txt -e ".[${EXTRA}]"

COPY . .
ARG REVISION
ENV UNISER_REVISION=${REVISION} PYTHONUNBUFFERED=1

# Launchers bring their own command; this one says how.
CMD ["python", "-m", "launch.local", "--help"]
