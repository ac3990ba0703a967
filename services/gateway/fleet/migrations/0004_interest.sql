-- Kinds beyond the base set that subscribers of one msgbus replica watch on a cluster; a replica that is gone stops counting.
create table fleet.interest (
    replica text not null,
    cluster_uid uuid not null,
    resources text[] not null,                  -- `{resource}..{group}`, the most wanted first
    expires timestamptz not null,
    primary key (replica, cluster_uid)
);
create index interest_cluster on fleet.interest (cluster_uid);
