//! All integration tests, in one binary: each file a subject.

mod backfills;
mod bad_data;
mod bad_databases;
mod cluster;
mod cluster_access;
mod cluster_admin;
mod cluster_certificates;
mod cluster_faults;
mod cluster_foreign_client;
mod cluster_logs;
mod cluster_members;
mod cluster_paused;
mod cluster_pipelines;
mod cluster_storage;
mod cluster_tpch;
mod cluster_tpch_faults;
mod disk_full;
mod examples;
mod kill;
mod layering;
mod messages;
mod networks;
mod secrets;
mod sessions;
mod storage;
mod targets;
