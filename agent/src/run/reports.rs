//! Where the pod manager's reports go: first to the dataplane, which must not wait, then to the cluster.

use std::net::IpAddr;

use tokio::sync::mpsc;

use crate::{
    cluster::{EventSubject, Recorder, ReporterInput},
    errors::chain,
    pod::PodReport,
    routes::{Action, DataplaneStopped, DataplaneThread, Withdrawals},
};

/// Passes reports on until there are none any more.
pub async fn pass_on(
    mut reports: mpsc::Receiver<PodReport>,
    dataplane: DataplaneThread,
    node_addresses: Vec<IpAddr>,
    reporter: mpsc::Sender<ReporterInput>,
    recorder: Recorder,
) {
    let mut withdrawals = Withdrawals::new(&node_addresses);
    while let Some(report) = reports.recv().await {
        for action in withdrawals.on_report(&report) {
            if carry_out(action, &dataplane).await.is_err() {
                return;
            }
        }
        let input = match report {
            PodReport::Status { pod, status } => ReporterInput::Status(pod, status),
            PodReport::Terminated { pod } => ReporterInput::Terminated(pod),
            PodReport::Died { .. } => continue,
            PodReport::Event {
                pod,
                severity,
                reason,
                message,
            } => {
                recorder.record(EventSubject::Pod(pod), severity, reason, message);
                continue;
            }
        };
        if reporter.send(input).await.is_err() {
            return;
        }
    }
}

async fn carry_out(action: Action, dataplane: &DataplaneThread) -> Result<(), DataplaneStopped> {
    let (outcome, verb, address) = match action {
        Action::Withdraw(address) => {
            let outcome = dataplane
                .call(move |maps| maps.withdraw_backend(address))
                .await?;
            (outcome, "withdrew", address)
        }
        Action::Restore(address) => {
            let outcome = dataplane
                .call(move |maps| maps.restore_backend(address))
                .await?;
            (outcome, "restored", address)
        }
    };
    match outcome {
        Ok(services) => tracing::info!(%address, services, "{verb} a backend of this node"),
        Err(error) => {
            tracing::error!(error = %chain(&error), %address, "a backend could not be {verb}");
        }
    }
    Ok(())
}
