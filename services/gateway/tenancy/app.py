"""Puts tenancy together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from kubegems.tenancy.v1 import environment_service_pb2, member_service_pb2, project_service_pb2, quota_service_pb2, tenant_service_pb2
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from services.gateway.tenancy.environments_api import EnvironmentService
from services.gateway.tenancy.members_api import MemberService
from services.gateway.tenancy.projects_api import ProjectService
from services.gateway.tenancy.quotas_api import QuotaService
from services.gateway.tenancy.tenants_api import TenantService

SCHEMA = "tenancy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """The servicers of tenancy."""

    tenants: TenantService
    projects: ProjectService
    environments: EnvironmentService
    members: MemberService
    quotas: QuotaService

    @property
    def services(self) -> list[tuple[ServiceDescriptor, object]]:
        """What to serve to users, as `rpc.methods` takes it."""
        return [
            (tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"], self.tenants),
            (project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"], self.projects),
            (environment_service_pb2.DESCRIPTOR.services_by_name["EnvironmentService"], self.environments),
            (member_service_pb2.DESCRIPTOR.services_by_name["MemberService"], self.members),
            (quota_service_pb2.DESCRIPTOR.services_by_name["QuotaService"], self.quotas),
        ]


async def prepare(database: Database) -> None:
    """Brings schema `tenancy` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")


def build(pages: Pages) -> Tenancy:
    """The servicers; the schemas `identity`, `tenancy` and `fleet` must be up to date when they are called."""
    return Tenancy(
        tenants=TenantService(pages),
        projects=ProjectService(pages),
        environments=EnvironmentService(pages),
        members=MemberService(pages),
        quotas=QuotaService(pages),
    )
