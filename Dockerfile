# docker build -t twofold --build-arg BACKEND=cpu .        a few hundred MB of torch, no GPU
# docker build -t twofold --build-arg BACKEND=cu130 .      CUDA 13.0; others: see uv's --torch-backend
# docker run --rm -it --gpus all --shm-size 8g -v "$PWD":/data twofold pretrain photos --out runs/photos
FROM python:3.12-slim
ARG BACKEND=cpu
ARG EXTRAS=report,speech,search,onnx
WORKDIR /opt/twofold
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --torch-backend "$BACKEND" ".[$EXTRAS]"
WORKDIR /data
ENTRYPOINT ["twofold"]
CMD ["--help"]
