//! Compiles the .proto files without a system protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "grpc/health/v1/health.proto",
            "portolan/v1/join.proto",
            "portolan/v1/routes.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
