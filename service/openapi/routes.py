"""The part of each route in the OpenAPI document.

Bodies are parsed without a pydantic model per number, so FastAPI cannot derive them; each route's part is written here
and its options are taken from service.options, which is also what validates them.
"""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from service import drift, errors
from service.artifact import Manifest, TestResult
from service.codecs import arrow, image, json_body, npy
from service.openapi.parts import (
    ARRAYS,
    BINARY,
    BODY_ERRORS,
    INPUTS,
    LATENTS,
    LOG_LIKELIHOODS,
    MODEL_ERRORS,
    NUMBERS,
    READY_ERRORS,
    VERSION_TEXT,
    Schema,
    Tag,
    answer_json,
    binary_answers,
    component,
    component_of,
    json_content,
    members_of,
    object_schema,
    query_parameters,
    route,
    rows_body,
)
from service.options import EncodeOptions, ExampleOptions, RowOptions, SampleOptions, ScoreOptions
from service.scores import CALIBRATED, DEFINITIONS

_CONTRIBUTIONS: Schema = {
    **ARRAYS,
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
_NAMED_SCORES = component(
    "NamedScores",
    {
        **object_schema(
            {
                name: {**NUMBERS, "description": f"{what.formula}; {what.unit}; {what.direction}."}
                for name, what in DEFINITIONS.items()
            },
            [],
        ),
        "description": "Those asked for.",
    },
)
_NAMED_P_VALUES = component(
    "NamedPValues",
    {
        **object_schema(dict.fromkeys(CALIBRATED, NUMBERS), []),
        "description": "Of each score asked for that has a direction, among its own held-out scores.",
    },
)
LOG_LIKELIHOOD = route(
    Tag.FLOWS,
    {
        **answer_json(
            "Scores",
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
                "scores": _NAMED_SCORES,
                "p_values": _NAMED_P_VALUES,
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
    rows_body("LogLikelihoodRequest", "inputs", INPUTS, ScoreOptions),
)
ENCODE = route(
    Tag.FLOWS,
    {
        **answer_json(
            "Latents",
            {"latents": {"type": "array", "items": NUMBERS}, "log_likelihood": LOG_LIKELIHOODS},
            ["latents", "log_likelihood"],
            {"latents": [[0.12, -0.7, 1.04]], "log_likelihood": [-1500.25]},
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE),
    },
    BODY_ERRORS,
    query_parameters(EncodeOptions),
    rows_body("EncodeRequest", "inputs", INPUTS, EncodeOptions),
)
DECODE = route(
    Tag.FLOWS,
    {
        **answer_json(
            "Outputs",
            {"outputs": {**ARRAYS, "description": "(B, *shape)."}},
            ["outputs"],
            {"outputs": [[[[0.0, 12.5]]]]},
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    BODY_ERRORS,
    query_parameters(RowOptions),
    rows_body("DecodeRequest", "latents", LATENTS, RowOptions),
)
_SAMPLES = {
    **answer_json(
        "Samples",
        {
            "samples": {**ARRAYS, "description": "(n, *shape)."},
            "log_likelihood": LOG_LIKELIHOODS,
            "seed": {"type": "integer"},
        },
        ["samples", "log_likelihood", "seed"],
        {"samples": [[[[0.0, 12.5]]]], "log_likelihood": [-1500.25], "seed": 7},
    ),
    **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
}
SAMPLE = route(
    Tag.FLOWS,
    _SAMPLES,
    BODY_ERRORS,
    query_parameters(SampleOptions),
    {
        "required": False,
        "content": {
            json_body.MEDIA_TYPE: {"schema": component("SampleRequest", object_schema(members_of(SampleOptions), []))}
        },
    },
)
SAMPLE_BY_QUERY = route(Tag.FLOWS, _SAMPLES, BODY_ERRORS, query_parameters(SampleOptions))
_NUMBER: Schema = {"type": "number"}
_SUMMARY_OF_SCORES = ("lowest", "highest", "mean", "std")
_OK: Schema = {"type": "string", "const": "ok"}
_STATUS = json_content({"status": "ok"}, component("Status", object_schema({"status": _OK}, ["status"])))
_SUMMARY = {"name": "fashion-mnist", "version": "0123456789ab", "kind": "image", "shape": [1, 28, 28]}
SUMMARY = ("name", "version", "description", "kind", "shape")  # members of the manifest, as they stand there
PUBLIC = (
    *SUMMARY,
    "columns",
    "value_range",
    "latent_layout",
    "statistics",
    "temperature",
    "recipe",
    "data_digest",
    "test",
    "torch_version",
    "licence",
)
_ANNOTATIONS: dict[str, Any] = {name: Manifest.model_fields[name].annotation for name in PUBLIC}
_PUBLIC_MEMBERS: dict[str, Schema] = {
    **members_of(create_model("Public", **_ANNOTATIONS)),
    "version": {"type": "string", "description": VERSION_TEXT},
    "kind": component("Kind", {"type": "string", "enum": ["image", "vector"]}),
    "digest": {"type": "string", "description": "SHA-256 of the file."},
    "test": component_of(TestResult),
}
for _name, _text in {
    "columns": "Of a table.",
    "latent_layout": "Where the part of each level lies in a latent code.",
    "statistics": "What a pass tells of a row.",
    "temperature": "Of samples, where a request does not say.",
    "recipe": "What it was trained by.",
    "data_digest": "Of the rows that it was fitted to.",
    "licence": "Of the data.",
}.items():
    _PUBLIC_MEMBERS[_name] = {**_PUBLIC_MEMBERS[_name], "description": _text}
_SUMMARY_MEMBERS = {name: _PUBLIC_MEMBERS[name] for name in (*SUMMARY, "digest")}
_SCORING = object_schema(
    {
        "default": {"type": "string", "description": "The score that /log-likelihood answers as `score`."},
        "scores": {"type": "array", "items": {"type": "string"}, "description": "All that can be asked for."},
        "typical": {"type": "number", "description": "H of typicality, nats."},
        "codec": {"type": "string", "description": "Of the picture whose size is its complexity."},
        "density": {"type": "array", "items": {"type": "string"}, "description": "Statistics under the density."},
    },
    ["default", "scores", "typical"],
)
_HISTOGRAM: Schema = {
    **object_schema({"edges": NUMBERS, "counts": NUMBERS}, ["edges", "counts"]),
    "description": "Of the held-out scores: 41 edges and 40 counts, the outer bins with what lies beyond them.",
}
_CALIBRATION = object_schema(
    {
        "score": {"type": "string", "description": "The default score, which all of this is of."},
        "alpha": {"type": "number"},
        "rows": {"type": "integer", "description": "Held-out rows."},
        "approximate": {"type": "boolean", "description": "Whether they are cross-validated."},
        "threshold": {"type": "number", "description": "Scores above it are anomalies at this alpha."},
        "summary": component(
            "ScoreSummary", object_schema(dict.fromkeys(_SUMMARY_OF_SCORES, _NUMBER), list(_SUMMARY_OF_SCORES))
        ),
        "histogram": component("ScoreHistogram", _HISTOGRAM),
    },
    ["score", "alpha", "rows", "approximate", "threshold", "summary", "histogram"],
)
_MANIFEST: Schema = {
    "type": "object",
    "properties": {
        **_PUBLIC_MEMBERS,
        "versions": {
            "type": "array",
            "items": {"type": "string"},
            "description": "All that are served, the one that the name alone means first.",
        },
        "value_range": {
            "type": "array",
            "items": {"type": "number"},
            "description": "Of pixels: smallest and largest.",
        },
        "scoring": component("Scoring", _SCORING),
        "calibration": component("Calibration", _CALIBRATION),
    },
    "required": list(_SUMMARY),
}
_MODEL_SUMMARY: Schema = {
    "type": "object",
    "properties": {
        **_SUMMARY_MEMBERS,
        "answers_for_name": {"type": "boolean", "description": "Whether it is the version that its name alone means."},
    },
    "required": list(_SUMMARY),
}
MODELS = route(
    Tag.MODELS,
    json_content(
        {"default": "fashion-mnist", "models": [_SUMMARY]},
        component(
            "Models",
            object_schema(
                {
                    "default": {"type": "string", "description": "Answers when none is named."},
                    "models": {"type": "array", "items": component("ModelSummary", _MODEL_SUMMARY)},
                },
                ["default", "models"],
            ),
        ),
    ),
    READY_ERRORS,
    [],
)
MODEL = route(Tag.MODELS, json_content(_SUMMARY, component("Manifest", _MANIFEST)), MODEL_ERRORS, [])
EXAMPLE = route(
    Tag.MODELS,
    {
        **json_content(
            {"model": "fashion-mnist", "inputs": [[[[0.0, 12.0]]]]},
            component("Example", object_schema({"model": {"type": "string"}, "inputs": INPUTS}, ["model", "inputs"])),
        ),
        **binary_answers(npy.MEDIA_TYPE, arrow.MEDIA_TYPE, image.MEDIA_TYPES[0]),
    },
    [errors.BadRequest, errors.NotAcceptable, errors.Unprocessable, *MODEL_ERRORS],
    query_parameters(ExampleOptions),
)
DRIFT = route(
    Tag.MODELS,
    answer_json(
        "Drift",
        members_of(drift.Reading),
        [name for name, field in drift.Reading.model_fields.items() if field.is_required()],
        drift.EXAMPLE.model_dump(mode="json", exclude_none=True),
    ),
    [errors.Unprocessable, *MODEL_ERRORS],
    [],
)
RELOAD = route(
    Tag.OPERATIONS,
    json_content(
        {"status": "ok", "loaded": ["fashion-mnist@0123456789ab"], "models": ["fashion-mnist@0123456789ab"]},
        component(
            "Reloaded",
            object_schema(
                {
                    "status": _OK,
                    "loaded": {"type": "array", "items": {"type": "string"}, "description": "What is new."},
                    "models": {"type": "array", "items": {"type": "string"}, "description": "All that is served."},
                    "workers": {"type": "integer", "description": "Processes that serve it, where there are several."},
                },
                ["status", "loaded", "models"],
            ),
        ),
    ),
    [errors.ReloadRefused, *READY_ERRORS],
    [],
)
LIVEZ = route(Tag.OPERATIONS, _STATUS, [errors.Stuck], [])
READYZ = route(Tag.OPERATIONS, _STATUS, READY_ERRORS, [])
METRICS = route(
    Tag.OPERATIONS, {"text/plain": {"schema": {"type": "string"}, "example": "glow_queue_rows 0.0"}}, [], []
)
