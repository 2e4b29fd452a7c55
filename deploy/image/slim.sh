#!/bin/sh
# Drops from /opt/venv what is installed but never loaded: tests, headers, sources, static libraries, tools, pyarrow's
# remote services, what Ray has for Java and for learning by reinforcement, and second copies of one library.
set -eu
cd /opt/venv/lib/python3.*/site-packages
find torch/bin -mindepth 1 ! -name torch_shm_manager -delete  # which importing torch looks for
rm -rf torch/include torch/share torch/test torch/lib/*_test.so simdjson/*.h simdjson/*.cpp
rm -rf pyarrow/include pyarrow/src pyarrow/*flight* pyarrow/libarrow_s3.so* pyarrow/_s3fs.* pyarrow/libarrow_python*.so.*.*.*
rm -rf ray/jars ray/rllib
find . -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyi' -o -name '*.px[di]' -o -name '*.pyx' \) -delete
