"""A stand-in for the official image tensorflow/serving, for tests where no registry has that image.

TensorFlow itself runs behind the same REST and gRPC interfaces, flags, configuration files and folder
layout; paths, words of errors and names of metrics are those of TensorFlow Serving's source
(github.com/tensorflow/serving: model_servers/main.cc, model_servers/http_rest_api_util.cc,
model_servers/server_core.cc, util/json_tensor.cc, batching/batching_session.cc). It has nothing that
the official server lacks; what it lacks itself it refuses with a message that says so.
"""
