"""REST: google.api.http bindings answered in process by the same pipeline that gRPC uses; no hop, no generated code.

`Api(pipeline, methods)` reads the bindings of the methods' descriptors and answers HTTP requests: proto3 JSON by an
encoder and a decoder compiled per message type (checked against protobuf's own), path variables, query parameters,
`google.api.HttpBody` raw and streamed both ways, server streams as SSE or NDJSON, gzip, CORS, errors as `{"error": …}`.
`HttpServer` puts it behind aiohttp with TLS, bounds of connections (`Guard`) and raw routes beside it. It takes a body off the
wire only for a caller who is let in. It refuses internal methods, unknown fields and parameters (naming them), duplicate keys
and headers, paths with dots, doubled or encoded slashes, bodies that are not JSON or too large, and method overrides. It
knows no business word and no database.
"""

from libs.rest.api import Api
from libs.rest.connection import Guard
from libs.rest.cors import Cors
from libs.rest.decode import decode
from libs.rest.encode import encode, to_json
from libs.rest.fixed import Fixed
from libs.rest.http import HttpServer

__all__ = ["Api", "Cors", "Fixed", "Guard", "HttpServer", "decode", "encode", "to_json"]
