"""The bench's own service, compiled when it is first asked for; its descriptors for Envoy, with everything they need."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import error_details_pb2  # noqa: F401 -- its types must be in the pool
from grpc_tools import protoc

from kubegems.policy.v1 import policy_pb2
from kubegems.tenancy.v1 import environment_service_pb2, tenant_service_pb2

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
TENANTS = tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"]
ENVIRONMENTS = environment_service_pb2.DESCRIPTOR.services_by_name["EnvironmentService"]
NAMES = ("kubegems.bench.v1.BenchService", TENANTS.full_name, ENVIRONMENTS.full_name)


def compile_into(folder: Path) -> Path:
    """A FileDescriptorSet of all services of the bench. Error details are in it: without them Envoy's error bodies are empty."""
    site, found = sysconfig.get_paths()["purelib"], folder / "descriptors.binpb"
    files = ["bench.proto", "kubegems/tenancy/v1/tenant_service.proto", "kubegems/tenancy/v1/environment_service.proto"]
    paths = ["-I", str(_HERE), "-I", str(_ROOT / "protos"), "-I", site, "-I", f"{site}/grpc_tools/_proto"]
    if protoc.main(["protoc", *paths, "--include_imports", f"--descriptor_set_out={found}", *files, "google/rpc/error_details.proto"]):
        raise RuntimeError("the bench's protos do not compile")
    return found


def bench_service(descriptors: Path) -> Any:
    """The descriptor of the bench's own service, in the pool that everything else is in."""
    assert policy_pb2.DESCRIPTOR.name, "its options are known"
    found = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    (own,) = (file for file in found.file if file.name == "bench.proto")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(own.SerializeToString())
    return pool.FindServiceByName(NAMES[0])
