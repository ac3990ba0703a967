"""The API's document: OpenAPI 3.1, made of descriptors, comments and rules, so that it cannot say what is not so.

`document(methods, about)` describes each HTTP binding of each public method: parameters from the path's template and the
query, the body, the answer (JSON, SSE and NDJSON streams, raw bodies), every error with the standard body, field rules as
schema keywords, who may call (`x-kubegems-permission`) and examples. A message has one schema for what is sent and one for
what comes back: only what is sent is bound by rules, since an answer leaves default values out and newer servers may add
fields. It refuses nothing and reads no files but the generated comments; it knows no business word.
"""

from libs.rest.openapi.document import About, document

__all__ = ["About", "document"]
