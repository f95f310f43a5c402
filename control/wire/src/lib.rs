//! What control and agents say to each other: over gRPC, generated from `proto/`, and in [`frames`].

#![forbid(unsafe_code)]

pub mod frames;

/// The first version of the protocol: [`v1::join_client`] and [`v1::routes_client`], with their servers.
#[allow(clippy::pedantic, missing_docs, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("portolan.v1");
}

/// The health service that gRPC servers in containers have, for probes.
#[allow(clippy::pedantic, missing_docs, reason = "generated code")]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
