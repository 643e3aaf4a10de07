from __future__ import annotations

import pytest
from serving_stand_in import flags
from serving_stand_in.flags import FlagError

ENTRYPOINT = [
    "--port=8500",
    "--rest_api_port=8501",
    "--model_name=model",
    "--model_base_path=/models/model",
]


def test_flags_of_the_entrypoint_and_of_a_service_are_read():
    read = flags.parse(
        [
            *ENTRYPOINT,
            "--model_config_file=/etc/tensorflow-serving/models.config",
            "--enable_batching",
            "--allow_version_labels_for_unavailable_models=true",
            "--max_num_load_retries=0",
            "--rest_api_num_threads=4",
        ]
    )
    assert (read.port, read.rest_api_port) == (8500, 8501)
    assert read.enable_batching and read.allow_version_labels_for_unavailable_models
    assert read.max_num_load_retries == 0
    assert read.model_config_file == "/etc/tensorflow-serving/models.config"


def test_last_value_of_a_flag_counts():
    assert flags.parse([*ENTRYPOINT, "--port=0"]).port == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--modle_name=x", "unknown argument: --modle_name=x"),
        ("model_name=x", "unknown argument: model_name=x"),
        ("--port", "--port needs a value"),
        ("--port=high", "Couldn't interpret value 'high' for flag --port"),
        ("--enable_batching=perhaps", "Couldn't interpret value 'perhaps'"),
        ("--ssl_config_file=/x", "that this stand-in does not implement"),
    ],
)
def test_wrong_argument_is_named(argument, message):
    with pytest.raises(FlagError, match=message):
        flags.parse([*ENTRYPOINT, argument])
