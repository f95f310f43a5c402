//! What a newcomer sees of `cargo xtask up`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::life::Stage;

/// Nodes, pods, the Service, who answered, the counters, and the line to paste.
pub fn up_shows_the_cluster_working(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let export = format!("export KUBECONFIG={}", cluster.kubeconfig().display());
    for expected in [
        "node/n1",
        "node/n2",
        "pod/web-",
        "service/web",
        "ANSWERED BY",
        "pod on n1  tcp",
        "outside    udp",
        "NEW FLOWS OF",
        "default/web:80/TCP",
        &export,
    ] {
        ensure!(
            cluster.report.contains(expected),
            "{expected:?} is missing in:\n{}",
            cluster.report
        );
    }
    Ok(())
}

/// Everything is built, so `up` takes at most 10 s, and control is ready within 1 s of its start.
pub fn a_warm_up_is_quick(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    ensure!(
        cluster.start_took() <= Duration::from_secs(10),
        "up took {:.1} s:\n{}",
        cluster.start_took().as_secs_f64(),
        cluster.report
    );
    let ready: f64 = cluster
        .report
        .split_once("ready ")
        .and_then(|(_, rest)| rest.split_once(" s after its start"))
        .and_then(|(seconds, _)| seconds.parse().ok())
        .with_context(|| format!("the report tells control's start:\n{}", cluster.report))?;
    ensure!(ready <= 1.0, "control was ready only after {ready} s");
    Ok(())
}
