"""A stand-in for the official image tensorflow/serving, for tests where no registry has that image.

TensorFlow itself runs behind the same REST and gRPC interfaces, flags, configuration files and folder
layout; paths, words of errors and names of metrics are those of TensorFlow Serving's source
(github.com/tensorflow/serving: model_servers/main.cc, model_servers/http_rest_api_util.cc,
model_servers/server_core.cc, util/json_tensor.cc, batching/batching_session.cc). It has nothing that
the official server lacks; what it lacks itself it refuses with a message that says so.
"""

from __future__ import annotations

import importlib.util
import sys
import types

# Only the parts of TensorFlow's Python package that a session needs are imported: all of it, with Keras, takes twice as long
# and twice the memory. Hence an empty module in place of tensorflow/__init__.py, before anything imports a part.
_found = importlib.util.find_spec("tensorflow")
if _found is not None and _found.submodule_search_locations:
    _package = types.ModuleType("tensorflow")
    _package.__path__ = list(_found.submodule_search_locations)
    _package.__spec__ = _found
    sys.modules.setdefault("tensorflow", _package)
