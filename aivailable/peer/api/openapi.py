"""The API's description (OpenAPI 3.1), kept by hand, small and true.

A test compares its paths and methods with the routes that the server really has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aivailable import __version__

_ROUTES: Mapping[str, Mapping[str, str]] = {
    "/": {"get": "What this is, in two lines"},
    "/healthz": {"get": "200 while the process lives"},
    "/readyz": {"get": "200 when this node can take requests, 503 with the reason otherwise"},
    "/metrics": {"get": "Prometheus text"},
    "/openapi.json": {"get": "This document"},
    "/v1/chat/completions": {"post": "OpenAI chat completion, streamed on request"},
    "/v1/completions": {"post": "OpenAI text completion, streamed on request"},
    "/v1/embeddings": {"post": "OpenAI embeddings of texts"},
    "/v1/rerank": {"post": "Documents ranked by their relevance to a query (Jina, Cohere)"},
    "/v1/models": {"get": "The deployments as OpenAI models"},
    "/v1/models/{model}": {"get": "One deployment, by name or alias"},
    "/cluster/v1/state": {"get": "The whole status document"},
    "/cluster/v1/nodes": {"get": "Nodes with their devices"},
    "/cluster/v1/nodes/{node}/drain": {
        "post": "Place nothing new there, move what runs; ?force=1 on the last one (admin)"
    },
    "/cluster/v1/nodes/{node}/undrain": {"post": "Serve again (admin)"},
    "/cluster/v1/nodes/{node}/pause": {
        "post": "Empty it for duration_s, 0 ends that; '_here' is the node that answers (admin)"
    },
    "/cluster/v1/settings": {
        "get": "The cluster's settings with units and ranges",
        "patch": "Change the keys of the body (admin)",
    },
    "/cluster/v1/members": {"get": "Members, voters, and who waits for admission"},
    "/cluster/v1/deployments": {
        "get": "Deployments and their replicas",
        "post": "Deploy a model; ?dry_run=1 says what it would come to (admin)",
    },
    "/cluster/v1/fit": {"post": "Where a model fits now, and what would make it fit (admin)"},
    "/cluster/v1/deployments/{name}": {"delete": "Remove a deployment (admin)"},
    "/cluster/v1/models": {"get": "The catalogue of model files"},
    "/cluster/v1/keys": {"get": "API keys without secrets (admin)", "post": "Mint a key (admin)"},
    "/cluster/v1/keys/{key_id}": {"delete": "Revoke a key (admin)"},
    "/cluster/v1/events": {"get": "History after ?after=VERSION: JSON, or followed as SSE"},
    "/cluster/v1/window": {"post": "Open the join window for duration_s, 0 closes (admin)"},
    "/cluster/v1/members/{node}": {"delete": "Take a member out for good (admin)"},
    "/cluster/v1/recover": {"post": "Found the cluster anew from this node's copy (admin)"},
    "/cluster/v1/merge": {"post": "End this cluster in the one named by into (admin)"},
    "/cluster/v1/leave": {"post": "This node leaves the cluster and stops (admin)"},
}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 1}
_TEXTS: Mapping[str, Any] = {"type": "array", "items": {"type": "string"}, "maxItems": 16}
_WHERE: Mapping[str, Any] = {
    "type": "object",
    "description": "where replicas may go; nodes and gpus are patterns of names, or ids",
    "properties": {
        "nodes": _TEXTS,
        "not_nodes": _TEXTS,
        "gpus": _TEXTS,
        "vendors": _TEXTS,
        "backends": _TEXTS,
        "architecture_min": {"type": "string", "description": "like 7.5, or gfx906"},
        "beside": {**_TEXTS, "description": "deployments whose hosts it shares"},
        "apart_from": {**_TEXTS, "description": "deployments whose hosts it keeps off"},
    },
}
_SHARED: Mapping[str, Any] = {
    "model": {"type": "string", "description": "a deployment's name or alias"},
    "stream": {"type": "boolean", "default": False},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean", "default": False}},
    },
    "n": {**_COUNT, "maximum": 16, "default": 1},
    "stop": {"type": ["string", "array"], "maxItems": 16},
    "seed": {"type": "integer"},
    "ignore_eos": {"type": "boolean", "default": False},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": 1},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
    "top_k": {"type": "integer", "minimum": -1, "default": 40},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.05},
    "typical_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
    "top_n_sigma": {"type": "number", "minimum": -1, "default": -1},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": 0},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": 0},
    "repeat_penalty": {"type": "number", "exclusiveMinimum": 0, "default": 1},
    "repeat_last_n": {"type": "integer", "minimum": -1, "default": 64},
    "dry_multiplier": {"type": "number", "minimum": 0, "default": 0},
    "dry_base": {"type": "number", "minimum": 1, "default": 1.75},
    "dry_allowed_length": {**_COUNT, "default": 2},
    "dry_penalty_last_n": {"type": "integer", "minimum": -1, "default": -1},
    "dry_sequence_breakers": {"type": "array", "items": {"type": "string"}},
    "xtc_probability": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "xtc_threshold": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1},
    "mirostat": {"enum": [0, 1, 2], "default": 0},
    "mirostat_tau": {"type": "number", "minimum": 0, "default": 5},
    "mirostat_eta": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "response_format": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object"},
        },
    },
    "grammar": {"type": "string", "description": "GBNF; its first rule is root"},
}
_BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            **_SHARED,
            "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            "max_completion_tokens": _COUNT,
            "logprobs": {"type": "boolean", "default": False},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "tools": {"type": "array", "items": {"type": "object"}, "maxItems": 128},
            "tool_choice": {"type": ["string", "object"], "default": "auto"},
            "parallel_tool_calls": {"type": "boolean", "default": True},
            "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh"]},
            "reasoning_format": {"enum": ["auto", "deepseek", "none"], "default": "auto"},
            "include_reasoning": {"type": "boolean", "default": True},
            "chat_template_kwargs": {"type": "object"},
        },
    },
    "/v1/completions": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            **_SHARED,
            "prompt": {"type": ["string", "array"]},
            "max_tokens": {**_COUNT, "default": 16},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "echo": {"type": "boolean", "default": False},
        },
    },
    "/v1/embeddings": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {
            "model": {"type": "string"},
            "input": {"type": ["string", "array"], "maxItems": 2048},
            "encoding_format": {"enum": ["float", "base64"], "default": "float"},
            "dimensions": _COUNT,
        },
    },
    "/v1/rerank": {
        "type": "object",
        "required": ["model", "query", "documents"],
        "properties": {
            "model": {"type": "string"},
            "query": {"type": "string"},
            "documents": {"type": "array", "minItems": 1, "maxItems": 1024},
            "top_n": _COUNT,
            "return_documents": {"type": "boolean", "default": False},
        },
    },
    "/cluster/v1/deployments": {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "description": "name, digest, or a path on this node"},
            "name": {"type": "string"},
            "context": {"description": "tokens per slot, or auto", "minimum": 1},
            "context_max": {
                "type": "integer",
                "minimum": 0,
                "description": "as much more as fits at the place; 0: as trained",
            },
            "slots": {"description": "requests decoded at a time, or auto", "minimum": 1},
            "slots_max": {
                "type": "integer",
                "minimum": 0,
                "description": "as many more as fit at the place; 0: as a worker takes",
            },
            "replicas_min": {"type": "integer", "minimum": 0, "default": 1},
            "replicas_max": {"type": "integer", "minimum": 1},
            "pin": {"type": "boolean", "default": False},
            "priority": {"type": "integer", "default": 0},
            "idle_ttl_s": {
                "type": "integer",
                "minimum": 0,
                "description": "replicas beyond replicas_min go after so long idle",
            },
            "where": _WHERE,
        },
    },
    "/cluster/v1/fit": {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {"type": "string", "description": "name, digest, or a path on this node"},
            "context": _COUNT,
            "slots": _COUNT,
            "options": {"type": "object", "additionalProperties": {"type": "string"}},
            "where": _WHERE,
        },
    },
    "/cluster/v1/keys": {
        "type": "object",
        "properties": {
            "scope": {"enum": ["user", "admin"], "default": "user"},
            "label": {"type": "string", "maxLength": 64},
        },
    },
    "/cluster/v1/window": {
        "type": "object",
        "required": ["duration_s"],
        "properties": {"duration_s": {"type": "integer", "minimum": 0, "maximum": 86400}},
    },
}
_ERROR: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "request_id": {"type": "string"},
            },
        }
    },
}


def document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "AIvailable", "version": __version__},
        "security": [{"bearer": []}],
        "paths": {
            path: {method: _operation(path, method, text) for method, text in methods.items()}
            for path, methods in _ROUTES.items()
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": dict(_ERROR)},
        },
    }


def _operation(path: str, method: str, text: str) -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    operation: dict[str, Any] = {
        "summary": text,
        "responses": {
            "2XX": {"description": "done"},
            "default": {"description": "an error", "content": {"application/json": error}},
        },
    }
    if "{" in path:
        name = path[path.index("{") + 1 : path.index("}")]
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if method == "post" and path in _BODIES:
        content = {"application/json": {"schema": dict(_BODIES[path])}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
