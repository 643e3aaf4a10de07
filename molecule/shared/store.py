"""Publishes a tiny model version into the test store. Usage: store.py ENDPOINT BUCKET MODEL VERSION [break]

With `break` the manifest names a wrong sha256 for the artifact, as after a damaged upload.
"""

from __future__ import annotations

import hashlib
import json
import sys

import boto3

endpoint, bucket, model, version = sys.argv[1:5]
s3 = boto3.client(
    "s3",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="embedded",
    aws_secret_access_key="embedded",
)
files = {
    "model.joblib": f"{model} {version}".encode() * 100,
    "golden.json": json.dumps(
        {
            "cases": [{"request": {"instances": [[0]]}, "response": {"predictions": [[1]]}}],
            "tolerance": 0,
        }
    ).encode(),
}
listed = {
    name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    for name, data in files.items()
}
if sys.argv[5:] == ["break"]:
    listed["model.joblib"]["sha256"] = "0" * 64
manifest = {
    "files": listed,
    "framework": "sklearn",
    "signature": {"inputs": {"shape": [1], "dtype": "float64"}, "outputs": {"shape": [1]}},
    "metrics": {"accuracy": 1.0},
    "data": {"sha256": "0" * 64, "rows": 1},
    "image": None,
    "code_revision": "",
    "created": "2026-01-01T00:00:00Z",
}
for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
    s3.put_object(Bucket=bucket, Key=f"models/{model}/{version}/{name}", Body=data)
