//! The repair loop of addresses, node ports and pod CIDRs; see [`crate::allocation::repair`].

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::{
    Context,
    events::{Regarding, Severity},
    resources::{NODES, SERVICES},
    worker::{Controller, Error, Outcome},
};
use crate::{
    allocation::{
        self, Allocations,
        repair::{Clash, Repair},
    },
    api::ObjectKey,
};

/// How long from round to round; twice this is how long something may stay leaked.
const EVERY: Duration = Duration::from_mins(3);

/// The row; it works on one key, from the start on.
pub fn controller(context: &Arc<Context>, allocations: &Arc<Allocations>) -> Controller<()> {
    let shared = Arc::clone(context);
    let allocations = Arc::clone(allocations);
    let repair = Arc::new(Mutex::new(Repair::default()));
    let row = Controller::new("allocation-repair", &context.clock, move |()| {
        let context = Arc::clone(&shared);
        let allocations = Arc::clone(&allocations);
        let repair = Arc::clone(&repair);
        async move { round(&context, &allocations, &mut *repair.lock().await).await }
    })
    .workers(1);
    row.queue().add(());
    row
}

async fn round(
    context: &Context,
    allocations: &Allocations,
    repair: &mut Repair,
) -> Result<Outcome, Error> {
    let failed = |source: allocation::Error| Error::Allocation {
        action: "repair the allocations".to_owned(),
        source,
    };
    // What is held first, who uses it after: a Service that is written in between explains what it holds.
    let books = allocations.services.books().await.map_err(failed)?;
    let services = context.client.live_list(SERVICES, None, None).await?;
    let clashes = repair
        .round(&allocations.services, &books, &services)
        .await
        .map_err(failed)?;
    for clash in &clashes {
        say(context, clash);
    }
    for node in allocations.pod_cidrs.holders().await.map_err(failed)? {
        let key = ObjectKey {
            namespace: None,
            name: node.clone(),
        };
        if context.client.live(NODES, &key).await?.is_none() {
            allocations.pod_cidrs.release(&node).await.map_err(failed)?;
        }
    }
    Ok(Outcome::After(EVERY))
}

fn say(context: &Context, clash: &Clash) {
    let (namespace, name) = clash.service.split_once('/').unwrap_or_default();
    let key = ObjectKey {
        namespace: Some(namespace.to_owned()),
        name: name.to_owned(),
    };
    if let Some(service) = context.informers.services.cache().get(&key) {
        context.events.record(
            Regarding::object(service.as_ref()),
            Severity::Warning,
            "AlreadyAllocated",
            format!(
                "{} was allocated to multiple services; {} holds it",
                clash.item, clash.holder
            ),
        );
    }
}
