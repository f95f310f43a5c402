//! Where the API meets the allocations: what a Service needs is taken before it is written and given back when it is not.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::Value;
use tracing::warn;

use super::{
    Allocations, Error,
    services::{Holding, owner_of},
};
use crate::{
    api::{
        ResourceId, Status,
        admission::{Admission, Operation, Review},
    },
    controllers::worker::chain,
    resource::rows::SERVICES,
};

/// Something taken for a write that is under way: whose, and what.
type Taken = (String, String);

/// See the file's front page.
pub struct ServiceAdmission {
    allocations: Arc<Allocations>,
    /// What this process has taken and not yet seen written. Only that may be given back when a write fails: the rest of
    /// what the refused object shows may be held by the object that is there.
    in_flight: Mutex<BTreeSet<Taken>>,
}

impl ServiceAdmission {
    /// Admits Services with these allocations.
    pub fn new(allocations: Arc<Allocations>) -> Arc<Self> {
        Arc::new(Self {
            allocations,
            in_flight: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Taken>> {
        // Every critical section leaves the set whole, so a panic elsewhere does not spoil it.
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the flight of what the object holds, and returns as much of it as was in flight.
    fn land(&self, object: &Value) -> Holding {
        let owner = owner_of(object);
        let mut in_flight = self.lock();
        let mut holding = Holding::of(object);
        holding
            .addresses
            .retain(|address| in_flight.remove(&(owner.clone(), address.to_string())));
        holding
            .node_ports
            .retain(|port| in_flight.remove(&(owner.clone(), port.to_string())));
        holding
    }

    async fn free(&self, object: &Value, holding: &Holding) {
        let owner = owner_of(object);
        if let Err(error) = self.allocations.services.free(&owner, holding).await {
            // The repair loop finds it again.
            warn!(
                owner,
                cause = chain(&error),
                "an allocation is not given back yet"
            );
        }
    }
}

#[async_trait]
impl Admission for ServiceAdmission {
    fn handles(&self, resource: ResourceId) -> bool {
        resource == SERVICES
    }

    async fn admit(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Status> {
        if review.operation == Operation::Delete || review.subresource.is_some() {
            return Ok(());
        }
        match self.allocations.services.reserve(object, review.old).await {
            Ok(reservation) => {
                self.lock().extend(reservation.into_taken());
                Ok(())
            }
            Err(Error::Invalid(causes)) => {
                Err(Status::invalid("", "Service", &review.key.name, causes))
            }
            Err(error) => Err(Status::internal(chain(&error))),
        }
    }

    async fn committed(&self, review: &Review<'_>, object: &Value) {
        if review.subresource.is_some() {
            return;
        }
        if review.operation == Operation::Delete {
            self.free(object, &Holding::of(object)).await;
            return;
        }
        self.land(object);
        if let Some(old) = review.old {
            let given_up = Holding::of(old).without(&Holding::of(object));
            self.free(old, &given_up).await;
        }
    }

    async fn abandoned(&self, review: &Review<'_>, object: &Value) {
        if review.operation == Operation::Delete || review.subresource.is_some() {
            return;
        }
        let taken = self.land(object);
        self.free(object, &taken).await;
    }
}
