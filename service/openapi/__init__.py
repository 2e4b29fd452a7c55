"""The OpenAPI document: bodies, media types, answers and errors of each route, and examples from the served models."""

from importlib.metadata import version

from service.openapi.document import document as document
from service.openapi.document import operation_id as operation_id

SUMMARY = "Exact log-likelihoods, latent codes and samples of trained Glow normalizing flows."
VERSION = version("glow-service")
