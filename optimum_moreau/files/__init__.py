"""Files: one reader and one writer of JSON, YAML and safetensors; temporary files that outlive no process."""

from .reading import (
    LARGEST_OF_TRANSFORMERS,
    MAX_JSON_BYTES,
    parse_json,
    read_json,
    read_lines,
    read_shapes,
    read_tensors,
    read_text,
    read_yaml,
)
from .records import Record, filled
from .writing import write_bytes, write_json, write_tensors, write_text

__all__ = [
    "LARGEST_OF_TRANSFORMERS",
    "MAX_JSON_BYTES",
    "Record",
    "filled",
    "parse_json",
    "read_json",
    "read_lines",
    "read_shapes",
    "read_tensors",
    "read_text",
    "read_yaml",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]
