#!/bin/sh
# The official image's entrypoint, but that the server replaces the shell and so gets its signals.
exec tensorflow_model_server --port=8500 --rest_api_port=8501 \
    --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" \
    "$@"
