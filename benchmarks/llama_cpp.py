"""llama.cpp's server with a model in fp32, for `python -m benchmarks.serve --url`; needs the package xllamacpp.

    python -m benchmarks.llama_cpp MODEL.gguf --port 8090 --clients 32      # until Ctrl-C
    python -m benchmarks.serve --url http://127.0.0.1:8090/v1 --name model

Quantized weights are first written as fp32 to a temporary file: prlhf computes in fp32 from the same numbers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

CONTEXT = 1024  # tokens of each client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--clients", type=int, default=32, help="requests at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = started(in_fp32(args.model, Path(folder) / "model.gguf"), args)
        print(f"serving {args.model} at {server.listening_address}/v1", flush=True)
        while True:
            time.sleep(3600)


def started(model: Path, args: argparse.Namespace) -> Any:
    """A server that listens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(model), ["127.0.0.1"], args.port
    params.n_parallel, params.n_ctx = args.clients, args.clients * CONTEXT
    params.n_gpu_layers, params.warmup, params.offline = 0, True, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def in_fp32(model: Path, path: Path) -> Path:
    """Write the GGUF file `model` to `path` with all tensors in fp32."""
    import gguf

    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    main()
