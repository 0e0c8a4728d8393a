//! The binary as an operator sees it: endpoints, admin API, log, signals, upgrade.

#![allow(clippy::unwrap_used)]

mod access_log;
mod admin;
mod binary;
mod broadcasts;
mod cors;
mod daemon;
mod debug_requests;
mod demo;
mod doctor;
mod doctor_vllm;
mod doctor_workers;
mod fan_out;
mod health;
mod hyper_client;
mod kept_workers;
mod leaving;
mod log;
mod log_json;
mod metrics;
mod names;
mod one_worker;
mod own_endpoints;
mod pages;
mod process_pair;
mod role_switch;
mod rollout;
mod server_timing;
mod service_manager;
mod steps;
mod stream_ends;
mod traces;
mod worker_health;
mod workers_api;
