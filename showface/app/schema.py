"""The descriptions of parameters and responses for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from showface.app.forms import FORMATS, JOB_ID, MAX_GROW, READABLE


class FoundFace(BaseModel):
    """A face in a photo. Coordinates are pixels of the upright photo."""

    box: list[float] = Field(description="Left, top, right, bottom.", min_length=4, max_length=4)
    points: list[list[float]] = Field(
        description="x, y of left eye, right eye, nose, left and right mouth corner, as seen in the picture."
    )
    score: float = Field(description="How sure it is, 0 to 1.")


class FoundFaces(BaseModel):
    """The faces in a photo, the largest first."""

    width: int = Field(description="Width of the upright photo in pixels.")
    height: int = Field(description="Height of the upright photo in pixels.")
    faces: list[FoundFace] = Field(description="The faces, the largest first.")


class JobStatus(BaseModel):
    """How far a job is."""

    state: Literal["queued", "running", "unknown"] = Field(
        description="queued, running or unknown. A finished job is unknown."
    )
    position: int = Field(description="Place in the queue, from 1; 0 for a job that does not wait.")
    stage: str = Field(description="What is being done, in words.")
    fraction: float = Field(description="How much is done, 0 to 1.")


class ModelInfo(BaseModel):
    """A model."""

    name: str = Field(description="The value of the form's field model.")
    description: str = Field(description="What it is for.")
    licence: str = Field(description="What its weights may be used for.")
    detail: float | None = Field(description="The field detail where a form gives none; null if there is no choice.")


class ModelList(BaseModel):
    """The models that are offered."""

    models: list[ModelInfo] = Field(description="All models.")
    default: str = Field(description="The model for requests that name none.")


class Health(BaseModel):
    """The server answers."""

    status: str = Field(description='Always "ok".')
    version: str = Field(description="The version of showface.")


class Problem(BaseModel):
    """An error."""

    detail: str = Field(description="One sentence that says what is wrong.")


ERRORS = {
    400: "The photo or the mask is broken, or they don't fit each other.",
    401: "The token is missing or wrong.",
    403: "The Host or the Origin is not this server's.",
    408: "The request took too long to arrive.",
    413: "The body, or the photo's number of pixels, is above the limit.",
    415: "The photo is no image that showface reads, or the body is no form.",
    422: "A field or parameter is missing, unknown or has a wrong value.",
    429: "The queue is full. Try again after the time in Retry-After.",
    503: "The server is stopping.",
    504: "The work took longer than the limit.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The descriptions of these error responses; 401 and 403 are in all."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({401, 403, *statuses}):
        responses[status] = {"model": Problem, "description": ERRORS[status]}
        if status == 429:
            seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            responses[status]["headers"] = {"Retry-After": seconds}
    return responses


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """A request body that is a form with these fields."""
    content = {"schema": {"type": "object", "properties": fields, "required": ["photo"], "additionalProperties": False}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


_PHOTO = _text(f"The photo: {READABLE}.", format="binary")
_JOB = _text("An id of your choice for GET /api/jobs/{job}.", pattern=JOB_ID)

FACES_BODY = _form({"photo": _PHOTO, "job": _JOB})
INPAINT_BODY = _form(
    {
        "photo": _PHOTO,
        "mask": _text("An image of the photo's upright size: white is the hole.", format="binary"),
        "paint": _text("The colour in which the hole is painted into the photo, such as white or #ff0000."),
        "alpha": {"type": "boolean", "default": False, "description": "The transparent part of the photo is the hole."},
        "invert": {"type": "boolean", "default": False, "description": "Swap hole and known pixels."},
        "grow": {
            "type": "integer",
            "default": 0,
            "minimum": 0,
            "maximum": MAX_GROW,
            "description": "Grow the hole by this many pixels.",
        },
        "faces": {"type": "boolean", "default": True, "description": "Find faces, and fill them in aligned crops."},
        "model": _text("The name of a model of GET /api/models."),
        "detail": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "0 = smooth to 1 = sharp, for models that have the choice: see GET /api/models.",
        },
        "format": _text(
            "png, or same for the photo's own format. Both keep EXIF data, colour profile and resolution.",
            enum=list(FORMATS),
            default=FORMATS[0],
        ),
        "job": _JOB,
    }
)

INPAINT_RESPONSE: dict[str, Any] = {
    "description": "The filled photo.",
    "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        "X-Showface-Faces": {"description": "The number of faces that were filled.", "schema": {"type": "integer"}},
        "X-Showface-Hole-Ratio": {"description": "The hole's part of the photo.", "schema": {"type": "number"}},
        "X-Showface-Milliseconds": {"description": "The time of the work.", "schema": {"type": "integer"}},
        "X-Showface-Notes": {"description": "What to know, as a JSON list of strings.", "schema": {"type": "string"}},
        "Content-Disposition": {"description": "A name for the file.", "schema": {"type": "string"}},
    },
}
