"""The part of each route in the OpenAPI document.

Bodies are parsed without a pydantic model per number, so FastAPI cannot derive them; each route's part is written here
and its options are taken from service.options, which is also what validates them.
"""

from __future__ import annotations

from service import drift, errors
from service.codecs import arrow, image, json_body, npy
from service.openapi.parts import (
    BINARY,
    BODY_ERRORS,
    INPUTS,
    LATENTS,
    LOG_LIKELIHOODS,
    MODEL_ERRORS,
    NUMBERS,
    READY_ERRORS,
    Schema,
    answer_json,
    binary_answers,
    json_content,
    object_schema,
    options_schema,
    query_parameters,
    route,
    rows_body,
)
from service.options import EncodeOptions, ExampleOptions, RowOptions, SampleOptions, ScoreOptions
from service.scores import CALIBRATED, DEFINITIONS

_CONTRIBUTIONS: Schema = {
    "type": "array",
    "items": {"type": "array"},
    "description": "Given explain: nats that sum to -log_likelihood over each input; higher is less likely. Of images "
    "(B, H, W), by pixel, summed over channels. Of tables (B, D), in the order of the model's `columns`: what another "
    "value of that column alone takes off -log_likelihood, and an equal share of what remains. They tell where the "
    "model finds an input unlikely, not what caused it. As npy, the answer is this array.",
}
_OVERLAYS: Schema = {
    **BINARY,
    "description": "Given explain, of images: a grid of the inputs, grey and enlarged, and over them their "
    "contributions in colour, brighter being higher, on one scale from the median of all to their quantile 0.995.",
}
LOG_LIKELIHOOD = route(
    {
        **answer_json(
            {
                "log_likelihood": LOG_LIKELIHOODS,
                "bits_per_dim": {**NUMBERS, "description": "-log_likelihood / (D ln 2)."},
                "score": {
                    **NUMBERS,
                    "description": "The default score of the artifact, which /models/{name} names; higher is more "
                    "anomalous.",
                },
                "p_value": {**NUMBERS, "description": "(1 + #{held-out scores >= score}) / (m + 1)."},
                "is_anomaly": {
                    "type": "array",
                    "items": {"type": "boolean"},
                    "description": "p_value <= alpha or, given guarantee conditional, p_value <= level or, given fdr, "
                    "flagged by Benjamini-Hochberg.",
                },
                "alpha": {"type": "number", "description": "Unless fdr is given."},
                "level": {"type": "number", "description": "Given guarantee conditional: what keeps to alpha."},
                "fdr": {"type": "number", "description": "Where it is given."},
                "contributions": _CONTRIBUTIONS,
                "scores": {
                    "type": "object",
                    "description": "Those asked for.",
                    "properties": {
                        name: {**NUMBERS, "description": f"{what.formula}; {what.unit}; {what.direction}."}
                        for name, what in DEFINITIONS.items()
                    },
                    "additionalProperties": False,
                },
                "p_values": {
                    "type": "object",
                    "description": "Of each score asked for that has a direction, among its own held-out scores.",
                    "properties": dict.fromkeys(CALIBRATED, NUMBERS),
                    "additionalProperties": False,
                },
            },
            ["log_likelihood", "bits_per_dim"],
            {
                "log_likelihood": [-1500.25],
                "bits_per_dim": [2.7607],
                "score": [-4.5],
                "p_value": [0.42],
                "is_anomaly": [False],
                "alpha": 0.01,
                "scores": {"typicality": [45.5]},
                "p_values": {"typicality": [0.4]},
                "contributions": [[[1480.0, 20.25]]],
            },
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
        image.MEDIA_TYPES[0]: {"schema": _OVERLAYS},
    },
    BODY_ERRORS,
    query_parameters(ScoreOptions),
    rows_body("inputs", INPUTS, ScoreOptions, images=True),
)
ENCODE = route(
    {
        **answer_json(
            {"latents": {"type": "array", "items": NUMBERS}, "log_likelihood": LOG_LIKELIHOODS},
            ["latents", "log_likelihood"],
            {"latents": [[0.12, -0.7, 1.04]], "log_likelihood": [-1500.25]},
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    },
    BODY_ERRORS,
    query_parameters(EncodeOptions),
    rows_body("inputs", INPUTS, EncodeOptions, images=True),
)
DECODE = route(
    {
        **answer_json(
            {"outputs": {"type": "array", "items": {"type": "array"}}}, ["outputs"], {"outputs": [[[[0.0, 12.5]]]]}
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    BODY_ERRORS,
    query_parameters(RowOptions),
    rows_body("latents", LATENTS, RowOptions, images=False),
)
_SAMPLES = {
    **answer_json(
        {
            "samples": {"type": "array", "items": {"type": "array"}, "description": "(n, *shape)."},
            "log_likelihood": LOG_LIKELIHOODS,
            "seed": {"type": "integer"},
        },
        ["samples", "log_likelihood", "seed"],
        {"samples": [[[[0.0, 12.5]]]], "log_likelihood": [-1500.25], "seed": 7},
    ),
    **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
}
SAMPLE = route(
    _SAMPLES,
    BODY_ERRORS,
    query_parameters(SampleOptions),
    {
        "required": False,
        "content": {json_body.MEDIA_TYPE: {"schema": object_schema(options_schema(SampleOptions), [])}},
    },
)
SAMPLE_BY_QUERY = route(_SAMPLES, BODY_ERRORS, query_parameters(SampleOptions))
_STATUS = json_content({"status": "ok"}, object_schema({"status": {"const": "ok"}}, ["status"]))
_SUMMARY = {"name": "fashion-mnist", "version": "0123456789ab", "kind": "image", "shape": [1, 28, 28]}
_MODEL_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "kind": {"enum": ["image", "vector"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "columns": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Of a table: names, types, categories.",
        },
        "value_range": {
            "type": "array",
            "items": {"type": "number"},
            "description": "Of pixels: smallest and largest.",
        },
        "scoring": {
            "type": "object",
            "description": "Names of the default score and of all scores; H of typicality; the picture's codec and the "
            "statistics under the density, where there are any.",
        },
        "calibration": {
            "type": "object",
            "description": "Of the default score: its name, alpha, number of held-out rows, whether they are "
            "approximate (cross-validated), the threshold above which a score is an anomaly, and lowest, highest, mean "
            "and std of the held-out scores; their histogram: 41 edges and 40 counts, the outer bins with what lies "
            "beyond them.",
        },
        "test": {"type": "object", "description": "Likelihood of test rows, and its standard error."},
    },
    "required": list(_SUMMARY),
}
MODELS = route(
    json_content(
        {"default": "fashion-mnist", "models": [_SUMMARY]},
        object_schema(
            {"default": {"type": "string"}, "models": {"type": "array", "items": _MODEL_SCHEMA}}, ["default", "models"]
        ),
    ),
    READY_ERRORS,
    [],
)
MODEL = route(json_content(_SUMMARY, _MODEL_SCHEMA), MODEL_ERRORS, [])
EXAMPLE = route(
    {
        **json_content(
            {"model": "fashion-mnist", "inputs": [[[[0.0, 12.0]]]]},
            object_schema({"model": {"type": "string"}, "inputs": INPUTS}, ["model", "inputs"]),
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    [errors.BadRequest, errors.NotAcceptable, errors.Unprocessable, *MODEL_ERRORS],
    query_parameters(ExampleOptions),
)
DRIFT = route(
    answer_json(
        options_schema(drift.Reading),
        [name for name, field in drift.Reading.model_fields.items() if field.is_required()],
        drift.EXAMPLE.model_dump(mode="json", exclude_none=True),
    ),
    [errors.Unprocessable, *MODEL_ERRORS],
    [],
)
RELOAD = route(
    json_content(
        {"status": "ok", "loaded": ["fashion-mnist@0123456789ab"], "models": ["fashion-mnist@0123456789ab"]},
        object_schema(
            {
                "status": {"const": "ok"},
                "loaded": {"type": "array", "items": {"type": "string"}, "description": "What is new."},
                "models": {"type": "array", "items": {"type": "string"}, "description": "All that is served."},
                "workers": {"type": "integer", "description": "Processes that serve it, where there are several."},
            },
            ["status", "loaded", "models"],
        ),
    ),
    [errors.ReloadRefused, *READY_ERRORS],
    [],
)
LIVEZ = route(_STATUS, [errors.Stuck], [])
READYZ = route(_STATUS, READY_ERRORS, [])
METRICS = route({"text/plain": {"schema": {"type": "string"}, "example": "glow_queue_rows 0.0"}}, [], [])
