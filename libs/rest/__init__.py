"""REST: google.api.http bindings answered in process by the same pipeline that gRPC uses; no hop, no generated code.

`Api(pipeline, methods)` reads the bindings of the methods' descriptors and answers HTTP requests: proto3 JSON by an
encoder and a decoder compiled per message type (checked against protobuf's own), path variables, query parameters,
`google.api.HttpBody` raw, server streams as SSE or NDJSON, errors as `{"error": …}`. `HttpServer` puts it behind
aiohttp with TLS and raw routes beside it. It refuses internal methods, unknown fields and parameters (naming them),
duplicate keys and headers, paths with dots, doubled or encoded slashes, bodies that are not JSON or too large, and
method overrides. It knows no business word and no database.
"""

from libs.rest.api import Api
from libs.rest.decode import decode
from libs.rest.encode import encode, to_json
from libs.rest.http import HttpServer

__all__ = ["Api", "HttpServer", "decode", "encode", "to_json"]
