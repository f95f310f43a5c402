//! The control plane: API server, scheduler, controllers and route distribution.

#![forbid(unsafe_code)]

pub mod allocation;
pub mod api;
mod bootstrap;
pub mod cli;
pub mod controllers;
pub mod grpc;
pub mod http;
pub mod pki;
mod random;
pub mod resource;
pub mod routing;
pub mod run;
pub mod scheduler;
pub mod store;
pub mod token_client;
