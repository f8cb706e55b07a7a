# The command line in an image, with the versions that the tests run with:
#
#     docker build --tag prlhf .
#     docker run --rm --volume "$PWD:/work" prlhf demo --quick
#
# Run as the user 1000 it writes into the folder that is mounted at /work. With NVIDIA's container toolkit, `--gpus all`
# gives it the GPUs; commands on Ray workers need `--shm-size 2g`. The base models of the hub are kept in /work/.cache.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
RUN python -m venv /opt/prlhf
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY prlhf_cli prlhf_cli
COPY prlhf prlhf
RUN /opt/prlhf/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home prlhf && install --directory --owner prlhf /work /work/.cache
COPY --from=build /opt/prlhf /opt/prlhf
ENV PATH=/opt/prlhf/bin:$PATH HF_HOME=/work/.cache/huggingface PRLHF_CACHE=/work/.cache/prlhf
USER prlhf
WORKDIR /work
ENTRYPOINT ["prlhf"]
CMD ["--help"]
