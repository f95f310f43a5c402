//! Asks the health service that gRPC servers have: grpc.health.v1.
#![forbid(unsafe_code)]

use portolan_wire::health::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic::{Code, transport::Endpoint};

use super::at;

/// Whether `service` (the whole server when empty) serves.
pub async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let place = at(host, port);
    let unreachable = |error: &(dyn std::error::Error + 'static)| {
        format!(
            "error: failed to connect service \"{place}\": {}",
            crate::errors::chain(error)
        )
    };
    let endpoint = Endpoint::try_from(format!("http://{place}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.36"))
        .map_err(|error| unreachable(&error))?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| unreachable(&error))?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel).check(request).await;
    let answer = answer.map_err(|status| match status.code() {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        code => format!(
            "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
            status.message()
        ),
    })?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!(
            "service unhealthy (responded with \"{}\")",
            other.as_str_name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use portolan_wire::health::{
        HealthCheckResponse,
        health_server::{Health, HealthServer},
    };
    use tonic::{Request, Response, Status, transport::Server};

    use super::*;

    struct Known;

    #[tonic::async_trait]
    impl Health for Known {
        async fn check(
            &self,
            request: Request<HealthCheckRequest>,
        ) -> Result<Response<HealthCheckResponse>, Status> {
            let status = match request.into_inner().service.as_str() {
                "" => ServingStatus::Serving,
                "ill" => ServingStatus::NotServing,
                _ => return Err(Status::not_found("unknown service")),
            };
            Ok(Response::new(HealthCheckResponse {
                status: status.into(),
            }))
        }
    }

    #[tokio::test]
    async fn health_is_asked_of_each_service() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_service(HealthServer::new(Known))
                .serve_with_incoming(incoming),
        );
        assert_eq!(check("127.0.0.1", port, "").await, Ok(()));
        let ill = check("127.0.0.1", port, "ill").await.expect_err("ill");
        assert_eq!(ill, "service unhealthy (responded with \"NOT_SERVING\")");
        let unknown = check("127.0.0.1", port, "x").await.expect_err("unknown");
        assert!(
            unknown.contains("code = NotFound desc = unknown service"),
            "{unknown}"
        );
        let nobody = check("127.0.0.1", 1, "").await.expect_err("nobody listens");
        assert!(
            nobody.contains("failed to connect service \"127.0.0.1:1\""),
            "{nobody}"
        );
    }
}
