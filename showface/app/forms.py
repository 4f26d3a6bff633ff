"""Reads multipart forms into memory, and checks their fields. No part of a form touches the disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from showface.app.guard import CallerGoneError, Refusal
from showface.data.hole import paint_colour

FILES = frozenset({"photo", "mask"})
FACES_FIELDS = frozenset({"photo", "job"})
INPAINT_FIELDS = frozenset(
    {
        "photo",
        "mask",
        "paint",
        "alpha",
        "invert",
        "grow",
        "faces",
        "model",
        "detail",
        "format",
        "job",
    }  # as in docs/app.md
)
JOB_ID = "^[A-Za-z0-9-]{1,64}$"
FORMATS = ("png", "same")
READABLE = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM; HEIC if pillow-heif is installed beside showface"
MAX_GROW = 100  # pixels; the time grows with it
MAX_PART_HEADER = 4096  # bytes
MAX_TEXT = 1024  # bytes of a field that is no file

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the form


@dataclass
class Part:
    """A field of a form: its bytes, and its file's name if the browser gave one."""

    data: bytearray = field(default_factory=bytearray)
    filename: str | None = None


Form = dict[str, Part]


@dataclass(frozen=True)
class InpaintForm:
    """The checked fields of `POST /api/inpaint`; see docs/app.md."""

    photo: bytes
    filename: str | None
    mask: bytes | None
    paint: str | None
    alpha: bool
    invert: bool
    grow: int
    faces: bool
    model: str
    detail: float | None
    keep_format: bool
    job: str | None


async def read_form(request: Request, fields: Collection[str]) -> Form:
    """Read the body of a request, multipart/form-data, into memory.

    Args:
        request: its body must not have been read. `Guard` limits the size and the time.
        fields: the names of the fields that are known.

    Raises:
        Refusal: no such form, a broken one, or an unknown field.
        CallerGoneError: the caller hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise Refusal(415, "send a form as multipart/form-data, with the photo in the field photo")
    collector = _Collector(fields)
    if not options.get(b"boundary"):
        raise Refusal(422, "the form has no boundary")
    try:
        parser = MultipartParser(options[b"boundary"], collector.callbacks())
        more = True
        while more:
            message = await request.receive()
            if message["type"] != "http.request":
                raise CallerGoneError
            parser.write(message.get("body", b""))
            more = message.get("more_body", False)
    except FormParserError:
        raise Refusal(422, "the form is broken: it is no valid multipart/form-data") from None
    if not collector.ended:
        raise Refusal(422, "the form is cut off: its last boundary is missing")
    return collector.form


def inpaint_form(form: Form, models: Collection[str], default: str) -> InpaintForm:
    """Check the fields of `POST /api/inpaint`.

    Args:
        form: from `read_form`.
        models: the names of the models.
        default: the model where the form names none.

    Raises:
        Refusal: a field is missing or has a wrong value.
    """
    texts = {name: part.data.decode(errors="replace") for name, part in form.items() if name not in FILES}
    paint = texts.get("paint") or None
    alpha = _flag(texts, "alpha", False)
    ways = [name for name, given in (("mask", "mask" in form), ("paint", paint), ("alpha", alpha)) if given]
    if len(ways) != 1:
        given = f"not {' and '.join(ways)}" if ways else "and none is given"
        raise Refusal(422, f"mark the hole in one way, by mask, paint or alpha, {given}")
    if paint is not None:
        _check_colour(paint)
    model = texts.get("model") or default
    if model not in models:
        raise Refusal(422, f"there is no such model: choose one of {', '.join(models)}")
    kind = texts.get("format") or FORMATS[0]
    if kind not in FORMATS:
        raise Refusal(422, "format must be png or same")
    return InpaintForm(
        photo=file_of(form, "photo"),
        filename=form["photo"].filename,
        mask=file_of(form, "mask") if "mask" in form else None,
        paint=paint,
        alpha=alpha,
        invert=_flag(texts, "invert", False),
        grow=_grow(texts.get("grow") or "0"),
        faces=_flag(texts, "faces", True),
        model=model,
        detail=_detail(texts.get("detail") or ""),
        keep_format=kind == "same",
        job=job_of(form),
    )


def file_of(form: Form, name: str) -> bytes:
    """The bytes of a file in a form. Raises Refusal if it is missing or empty."""
    if name not in form:
        raise Refusal(422, f"the form lacks the field {name}")
    if not form[name].data:
        raise Refusal(422, f"the {name} is empty")
    data = bytes(form[name].data)
    form[name].data = bytearray()  # one copy is enough
    return data


def job_of(form: Form) -> str | None:
    """The client's id of the job, or None. Raises Refusal for an invalid one."""
    name = form["job"].data.decode(errors="replace") if "job" in form else ""
    return check_job(name) if name else None


def check_job(name: str) -> str:
    """The id of a job, if it is valid. Raises Refusal otherwise."""
    if not re.fullmatch(JOB_ID, name) or name.endswith("\n"):
        raise Refusal(422, "the id of a job has 1 to 64 characters: letters, digits and -")
    return name


def _flag(texts: dict[str, str], name: str, default: bool) -> bool:
    value = texts.get(name, "").lower()
    if value not in ("", "true", "false"):
        raise Refusal(422, f"{name} must be true or false")
    return default if not value else value == "true"


def _grow(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= MAX_GROW):
        raise Refusal(422, f"grow must be a whole number of pixels, 0 to {MAX_GROW}")
    return int(text)


def _detail(text: str) -> float | None:
    if not text:
        return None
    try:
        detail = float(text)
    except ValueError:
        detail = -1.0
    if not 0 <= detail <= 1:  # nor is nan
        raise Refusal(422, "detail must be a number from 0 to 1, such as 0.5")
    return detail


def _check_colour(text: str) -> None:
    try:
        paint_colour(text)
    except ValueError:
        raise Refusal(422, "paint must be a colour, such as white or #ff0000") from None


class _Collector:
    """Collects what the parser finds."""

    def __init__(self, fields: Collection[str]) -> None:
        self.fields = fields
        self.form: Form = {}
        self.ended = False
        self._header = [b"", b""]
        self._header_size = 0
        self._disposition = b""
        self._part = Part()
        self._limit: int | None = None

    def callbacks(self) -> Any:
        """The parser's callbacks by name. Their type is another one in older versions of the parser."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._add,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._header_size, self._disposition = 0, b""

    def _add_header(self, index: int, data: bytes) -> None:
        self._header_size += len(data)
        if self._header_size > MAX_PART_HEADER:
            raise Refusal(422, "a field of the form has too long headers")
        self._header[index] += data

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name not in self.fields:
            raise Refusal(422, f"the form has an unknown field; known are {', '.join(sorted(self.fields))}")
        if name in self.form:
            raise Refusal(422, f"the form has the field {name} twice")
        filename = options.get(b"filename")
        self._part = Part(filename=filename.decode(errors="replace") if filename is not None else None)
        self._limit = None if name in FILES else MAX_TEXT
        self.form[name] = self._part

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._part.data += memoryview(data)[start:end]
        if self._limit is not None and len(self._part.data) > self._limit:
            raise Refusal(422, f"a field of the form has more than {MAX_TEXT} bytes, and is no file")

    def _end(self) -> None:
        self.ended = True
