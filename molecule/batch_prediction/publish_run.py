"""Puts a run of the job `known` into the store, as a host that is gone by now would have. Usage: publish_run.py BUCKET"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))
from groundcrew import batch_store, objects

RUN = batch_store.new_run_id()
bucket = sys.argv[1]
writer = batch_store.BatchWriter(objects.open_client(), bucket, "known", RUN)
writer.add_part(0, b"part", 5)
writer.add_rejected(b"rejected", 1)
writer.finish(
    {
        "model_name": "digits",
        "model_version": "1",
        "model_manifest_sha256": hashlib.sha256(b"manifest").hexdigest(),
        "input": {"uri": f"s3://{bucket}/data/known.csv"},
        "include_instances": False,
    }
)
