"""A prediction service over HTTP with TensorFlow Serving's REST contract."""
