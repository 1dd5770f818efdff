"""Parse files with Triton's own protobuf of ``config.pbtxt``: parse_triton.py, paths as JSON on stdin; prints them."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

found = [
    json_format.MessageToDict(
        text_format.Parse(Path(path).read_text(), model_config_pb2.ModelConfig()), preserving_proto_field_name=True
    )
    for path in json.load(sys.stdin)
]
print(json.dumps(found))
