"""Files: one reader and one writer of JSON, YAML and safetensors; temporary files that outlive no process."""

from .filling import T, filled
from .reading import (
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
    MAX_YAML_BYTES,
    MAX_YAML_VALUES,
    parse_json,
    read_json,
    read_lines,
    read_shapes,
    read_tensors,
    read_text,
    read_yaml,
)
from .records import Record
from .values import LARGEST, LARGEST_OF_TRANSFORMERS, MAX_DEPTH
from .writing import write_bytes, write_json, write_tensors, write_text

__all__ = [
    "LARGEST",
    "LARGEST_OF_TRANSFORMERS",
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "MAX_TEXT_BYTES",
    "MAX_YAML_BYTES",
    "MAX_YAML_VALUES",
    "Record",
    "T",
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
