"""How an episode lies in an MCAP file: dicts of numbers, arrays and words as protobuf, images as PNG.

The protobuf schema is made from the names and types of the values and stored in the file, so that Foxglove,
rerun and any later version can plot and read every value without this program.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, cast

import cv2
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto
from google.protobuf.message import DecodeError, Message
from mcap import records as mcap_records
from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.writer import Writer
from numpy.typing import NDArray

from agent.files import GrowingFile, to_json

Image = NDArray[np.uint8]
Signature = tuple[tuple[str, Any], ...]  # (name, (type, repeated)) or (name, Signature) of a section

MAGIC = bytes((137, 77, 67, 65, 80, 48, 13, 10))
PACKAGE = "episode"
PROFILE = "dclaw-slac"
SCHEMA_VERSION = 1
ATTACHED = ("config", "rig", "calibration")  # header entries that lie in the file as attachments
# Lossless; level 1 takes 0.14 ms for a 64x64 frame and level 6 0.34 ms, for 1 % less.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1]
DTYPES: dict[int, type[np.generic]] = {
    Proto.TYPE_DOUBLE: np.float64,
    Proto.TYPE_FLOAT: np.float32,
    Proto.TYPE_INT64: np.int64,
    Proto.TYPE_BOOL: np.bool_,
    Proto.TYPE_STRING: np.object_,
}


ARRAYS = (np.ndarray, np.generic)


class CodecError(ValueError):
    """A value cannot be written, or a record cannot be read."""


def freeze(values: Mapping[str, Any], where: str = "") -> tuple[Signature, dict[str, Any]]:
    """A copy of nested values in plain Python types, safe to hand to another thread, and its signature.

    Values are numbers, words, sequences of words and arrays of at most one dimension; mappings are sections.
    Raises CodecError for anything else and for names that cannot be a field.
    """
    signature, payload = [], {}
    for name, value in values.items():
        if not (name.isidentifier() and name.isascii()):
            raise CodecError(f"{where}{name!r} cannot be logged: a name consists of letters, digits and _")
        kind, payload[name] = (
            freeze(value, f"{where}{name}.")
            if isinstance(value, Mapping)
            else _plain(value, f"{where}{name}")
        )
        signature.append((name, kind))
    return tuple(signature), payload


def _plain(value: Any, where: str) -> tuple[tuple[int, bool], Any]:
    """((protobuf type, repeated), plain Python value)."""
    if isinstance(value, ARRAYS):
        if value.ndim > 1:
            raise CodecError(f"{where} cannot be logged: an array of shape {value.shape}; flatten it first")
        return (_array_type(value.dtype, where), value.ndim == 1), value.tolist()
    if isinstance(value, bool):
        return (Proto.TYPE_BOOL, False), value
    if isinstance(value, int):
        return (Proto.TYPE_INT64, False), value
    if isinstance(value, float):
        return (Proto.TYPE_DOUBLE, False), value
    if isinstance(value, str):
        return (Proto.TYPE_STRING, False), value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return (Proto.TYPE_STRING, True), list(value)
    if isinstance(value, list | tuple):
        return _plain(np.asarray(value), where)
    raise CodecError(
        f"{where} cannot be logged: it is {type(value).__name__}, not a number, an array or a word"
    )


def _array_type(dtype: np.dtype[Any], where: str) -> int:
    if dtype.kind == "f":
        return Proto.TYPE_DOUBLE if dtype.itemsize == 8 else Proto.TYPE_FLOAT
    types: dict[str, int] = {
        "i": Proto.TYPE_INT64,
        "u": Proto.TYPE_INT64,
        "b": Proto.TYPE_BOOL,
        "U": Proto.TYPE_STRING,
    }
    if dtype.kind not in types:
        raise CodecError(f"{where} cannot be logged: an array of {dtype}")
    return types[dtype.kind]


class Layout:
    """The message type of one signature: its schema for the file and its encoder."""

    def __init__(self, name: str, signature: Signature) -> None:
        proto = descriptor_pb2.FileDescriptorProto(
            name=f"{PACKAGE}_{name}.proto", package=PACKAGE, syntax="proto3"
        )
        _describe(proto.message_type.add(), f".{PACKAGE}", name, signature)
        self.name = f"{PACKAGE}.{name}"
        self.schema = _file_set(proto)
        self._message = _message_class(self.name, self.schema)

    def encode(self, payload: Mapping[str, Any]) -> bytes:
        """The bytes of a frozen payload that has this layout's signature."""
        return self._message(**payload).SerializeToString()


def _describe(message: descriptor_pb2.DescriptorProto, scope: str, name: str, signature: Signature) -> None:
    message.name, scope = name, f"{scope}.{name}"
    for number, (key, kind) in enumerate(signature, start=1):
        field = message.field.add(name=key, number=number, label=Proto.LABEL_OPTIONAL)
        if kind and isinstance(kind[0], int):
            field.type = Proto.Type.ValueType(kind[0])
            field.label = Proto.LABEL_REPEATED if kind[1] else Proto.LABEL_OPTIONAL
        else:
            section = "".join(word.capitalize() for word in key.split("_")) + "Values"
            _describe(message.nested_type.add(), scope, section, kind)
            field.type, field.type_name = Proto.TYPE_MESSAGE, f"{scope}.{section}"


def _file_set(*files: descriptor_pb2.FileDescriptorProto) -> bytes:
    return descriptor_pb2.FileDescriptorSet(file=files).SerializeToString(deterministic=True)


def _message_class(name: str, schema: bytes) -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


class Decoder:
    """Reads the messages of one schema of a file."""

    def __init__(self, name: str, schema: bytes) -> None:
        self.name = name
        self._message = _message_class(name, schema)
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(schema).file
        (message,) = (item for item in file.message_type if name.endswith(f".{item.name}"))
        self._leaves = list(_leaves(message))
        self.dtypes = {leaf.path: leaf.dtype for leaf in self._leaves}

    def decode(self, data: bytes) -> dict[str, Any]:
        """Every value of a message by its path: a number, a word, or a list of them. Raises CodecError."""
        try:
            message = self._message.FromString(data)
        except DecodeError as error:
            raise CodecError(f"a damaged {self.name} message") from error
        return {leaf.path: leaf.of(message) for leaf in self._leaves}


@dataclass(frozen=True, slots=True)
class _Leaf:
    sections: tuple[str, ...]
    name: str
    repeated: bool
    dtype: type[np.generic]
    path: str  # "section/name"

    def of(self, message: Any) -> Any:
        for section in self.sections:
            message = getattr(message, section)
        value = getattr(message, self.name)
        return list(value) if self.repeated else value


def _leaves(message: descriptor_pb2.DescriptorProto, sections: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    nested = {item.name: item for item in message.nested_type}
    for field in message.field:
        if field.type == Proto.TYPE_MESSAGE:
            yield from _leaves(nested[field.type_name.rpartition(".")[2]], (*sections, field.name))
        else:
            repeated = field.label == Proto.LABEL_REPEATED
            path = "/".join((*sections, field.name))
            yield _Leaf(sections, field.name, repeated, DTYPES[field.type], path)


def column(rows: list[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The values of one name over time as an array (rows, ...); where a row is None: nan, 0 or empty."""
    known = next((row for row in rows if row), 0)
    if dtype is np.object_ or len({len(row) for row in rows if isinstance(row, list) and row}) > 1:
        return _ragged(rows, () if any(isinstance(row, list) for row in rows) else "")
    absent = np.nan if np.issubdtype(dtype, np.floating) else 0
    blank = [absent] * len(known) if isinstance(known, list) else absent
    return np.array([blank if row is None or row == [] else row for row in rows], dtype)


def _ragged(rows: list[Any], blank: tuple[Any, ...] | str) -> NDArray[np.object_]:
    """Words, and vectors that changed their length, as an array of objects."""
    objects = np.empty(len(rows), np.object_)
    for number, row in enumerate(rows):
        objects[number] = blank if row is None else tuple(row) if isinstance(row, list) else row
    return objects


def encode_png(image: Image) -> bytes:
    """image (H, W, 3) uint8 RGB as a lossless PNG."""
    done, data = cv2.imencode(".png", image[:, :, ::-1], PNG_OPTIONS)
    if not done:
        raise CodecError(f"an image of shape {image.shape} could not be encoded as PNG")
    return data.tobytes()


def decode_png(data: bytes) -> Image:
    """(H, W, 3) uint8 RGB. Raises CodecError when the data is damaged."""
    if not _png_intact(data):
        raise CodecError("a damaged PNG")
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise CodecError("a damaged PNG")
    return np.asarray(image, np.uint8)


def _png_intact(data: bytes) -> bool:
    """Whether every chunk's checksum is right; OpenCV only warns and returns wrong pixels."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if data[end - 4 : end] != zlib.crc32(data[position + 4 : end - 4]).to_bytes(4, "big"):
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end
    return False


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time as protobuf and MCAP want it."""

    nanoseconds: int

    @classmethod
    def of(cls, seconds: float) -> Stamp:
        """From seconds; times before zero become zero, because MCAP's are unsigned."""
        return cls(max(0, round(seconds * 1e9)))

    @property
    def fields(self) -> dict[str, int]:
        """The fields of a google.protobuf.Timestamp."""
        seconds, nanos = divmod(self.nanoseconds, 1_000_000_000)
        return {"seconds": seconds, "nanos": nanos}


class Foxglove:
    """One of Foxglove's well-known messages, so that its image and log panels show ours."""

    def __init__(self, name: str, proto: descriptor_pb2.FileDescriptorProto) -> None:
        stamp = descriptor_pb2.FileDescriptorProto()
        timestamp_pb2.DESCRIPTOR.CopyToProto(stamp)
        self.name, self.schema = f"foxglove.{name}", _file_set(stamp, proto)
        self._message = _message_class(self.name, self.schema)

    def encode(self, payload: Mapping[str, Any]) -> bytes:
        """The bytes of a message with these fields."""
        return self._message(**payload).SerializeToString()

    def decode(self, data: bytes) -> Any:
        """The message. Raises CodecError."""
        try:
            return self._message.FromString(data)
        except DecodeError as error:
            raise CodecError(f"a damaged {self.name} message") from error


def compressed_image() -> Foxglove:
    """foxglove.CompressedImage, field numbers as in Foxglove's published schema."""
    proto, message = _foxglove_file("CompressedImage")
    message.field.add(name="frame_id", number=4, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_STRING)
    message.field.add(name="data", number=2, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_BYTES)
    message.field.add(name="format", number=3, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_STRING)
    return Foxglove("CompressedImage", proto)


LOG_LEVELS = ("unknown", "debug", "info", "warning", "error", "fatal")


def log_message() -> Foxglove:
    """foxglove.Log, field numbers as in Foxglove's published schema."""
    proto, message = _foxglove_file("Log")
    levels = message.enum_type.add(name="Level")
    for number, level in enumerate(LOG_LEVELS):
        levels.value.add(name=level.upper(), number=number)
    message.field.add(
        name="level",
        number=2,
        label=Proto.LABEL_OPTIONAL,
        type=Proto.TYPE_ENUM,
        type_name=".foxglove.Log.Level",
    )
    message.field.add(name="message", number=3, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_STRING)
    message.field.add(name="name", number=4, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_STRING)
    return Foxglove("Log", proto)


def _foxglove_file(name: str) -> tuple[descriptor_pb2.FileDescriptorProto, descriptor_pb2.DescriptorProto]:
    proto = descriptor_pb2.FileDescriptorProto(
        name=f"foxglove/{name}.proto",
        package="foxglove",
        syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"],
    )
    message = proto.message_type.add(name=name)
    stamp = ".google.protobuf.Timestamp"
    message.field.add(
        name="timestamp", number=1, label=Proto.LABEL_OPTIONAL, type=Proto.TYPE_MESSAGE, type_name=stamp
    )
    return proto, message


@dataclass(frozen=True, slots=True)
class Record:
    """One whole record of a file: what it is, what it says, and where it lies."""

    opcode: int
    payload: bytes
    start: int
    end: int

    def stream(self) -> ReadDataStream:
        """The payload for the readers of the mcap package."""
        return ReadDataStream(BytesIO(self.payload))


def records(data: bytes) -> Iterator[Record]:
    """The records of an unchunked file up to its end or to the first torn one.

    The mcap package's own reader takes a torn last message for a whole one, with its data cut short.
    """
    position = len(MAGIC) if data.startswith(MAGIC) else len(data)
    while position + 9 <= len(data):
        opcode, length = struct.unpack_from("<BQ", data, position)
        end = position + 9 + length
        if end > len(data) or not 0 < opcode < 0x80:  # zeros: a block that never reached the disk
            return
        yield Record(opcode, data[position + 9 : end], position, end)
        position = end


class Container:
    """The MCAP file: registers a schema and a channel for each shape of message that comes by."""

    def __init__(self, disk: GrowingFile) -> None:
        self.disk = disk
        # Unchunked: a chunk in progress is lost with the process (91 of 91 steps, by measurement).
        self.writer = Writer(cast(IO[bytes], disk), use_chunking=False, enable_data_crcs=True)
        self.writer.start(profile=PROFILE, library=f"{PROFILE} episode schema {SCHEMA_VERSION}")
        self._offset = 0.0
        self._channels: dict[Any, tuple[int, Layout | Foxglove]] = {}

    def header(self, header: Mapping[str, Any]) -> None:
        """The first records: what the caller says of the run, and the schema version."""
        self._offset = float(header.get("wall_offset", 0.0))
        plain = {name: value for name, value in header.items() if name not in ATTACHED}
        plain["schema_version"] = SCHEMA_VERSION
        self.writer.add_metadata("header", {name: to_json(value) for name, value in plain.items()})
        for name in ATTACHED:
            if name in header:
                value = header[name]
                suffix = "yaml" if isinstance(value, str) else "json"
                data = value if isinstance(value, str) else to_json(value)
                self.writer.add_attachment(0, 0, f"{name}.{suffix}", f"application/{suffix}", data.encode())

    def record(self, topic: str, signature: Signature, payload: Mapping[str, Any], sequence: int) -> None:
        """One message of values; payload["telemetry"]["time"] is its time."""
        channel, layout = self._channel(topic, signature)
        time = self.stamp(payload["telemetry"]["time"]).nanoseconds
        self.writer.add_message(channel, time, layout.encode(payload), time, sequence)

    def image(self, name: str, image: Image, telemetry: Mapping[str, Any], sequence: int) -> None:
        """One camera image with the time of its capture."""
        channel, layout = self._channel(f"/observation/{name}", compressed_image)
        stamp = self.stamp(telemetry.get("frame_time", telemetry["time"]))
        payload = {"timestamp": stamp.fields, "frame_id": name, "data": encode_png(image), "format": "png"}
        log_time = self.stamp(telemetry["time"]).nanoseconds
        self.writer.add_message(channel, log_time, layout.encode(payload), stamp.nanoseconds, sequence)

    def event(self, time: float, name: str, text: str, level: str) -> None:
        """One line for the log panel; `level` is one of LOG_LEVELS."""
        channel, layout = self._channel("/event", log_message)
        stamp = self.stamp(time)
        number = LOG_LEVELS.index(level)
        payload = {"timestamp": stamp.fields, "level": number, "message": text, "name": name}
        self.writer.add_message(channel, stamp.nanoseconds, layout.encode(payload), stamp.nanoseconds)

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """The task's parameters of this episode."""
        values = {name: to_json(value) for name, value in parameters.items()}
        self.writer.add_metadata("parameters", values)

    def copy(self, record: Record) -> None:
        """One record of the data section of another file; all of them in order, or schemas get lost."""
        stream = record.stream()
        if record.opcode == Opcode.SCHEMA:
            schema = mcap_records.Schema.read(stream)
            self.writer.register_schema(schema.name, schema.encoding, schema.data)
        elif record.opcode == Opcode.CHANNEL:
            channel = mcap_records.Channel.read(stream)
            self.writer.register_channel(channel.topic, channel.message_encoding, channel.schema_id)
        elif record.opcode == Opcode.MESSAGE:
            item = mcap_records.Message.read(stream, len(record.payload))
            self.writer.add_message(
                item.channel_id, item.log_time, item.data, item.publish_time, item.sequence
            )
        elif record.opcode == Opcode.METADATA:
            metadata = mcap_records.Metadata.read(stream)
            self.writer.add_metadata(metadata.name, metadata.metadata)
        elif record.opcode == Opcode.ATTACHMENT:
            item = mcap_records.Attachment.read(stream)
            self.writer.add_attachment(item.create_time, item.log_time, item.name, item.media_type, item.data)

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """Writes how the episode ended and the summary that makes the file whole."""
        self.writer.add_metadata("outcome", {name: to_json(value) for name, value in outcome.items()})
        self.writer.finish()  # type: ignore[no-untyped-call]
        self.disk.commit()

    def stamp(self, seconds: float) -> Stamp:
        """Wall time, as far as the header knows the offset of the run's clock to it."""
        return Stamp.of(seconds + self._offset)

    def _channel(self, topic: str, kind: Signature | Callable[[], Foxglove]) -> tuple[int, Layout | Foxglove]:
        key = (topic, kind)
        if key not in self._channels:
            layout = kind() if callable(kind) else Layout(topic.strip("/").capitalize(), kind)
            schema = self.writer.register_schema(layout.name, "protobuf", layout.schema)
            self._channels[key] = (self.writer.register_channel(topic, "protobuf", schema), layout)
        return self._channels[key]
