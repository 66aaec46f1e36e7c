# docker build -t construction_panoptic .
# docker run --gpus all --shm-size 8g -v "$PWD:/work" construction_panoptic --conf-source /opt/conf --params raw_data=exports
#
# Data, models and runs are written to the folder that is mounted. TORCH_INDEX is a package index that has torch for the
# machine at hand, such as its CPU builds, which are far smaller; the default one has those for CUDA.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=

WORKDIR /opt
RUN pip install --no-cache-dir uv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY conf conf
RUN if [ -n "$TORCH_INDEX" ]; then \
        uv pip install --system --no-cache --index-url "$TORCH_INDEX" --constraint constraints.txt torch torchvision; \
    fi && \
    uv pip install --system --no-cache --constraint constraints.txt '.[export,offline,ray]'

WORKDIR /work
ENTRYPOINT ["python", "-m", "construction_panoptic"]
