//! Frees what no Service uses and takes again what one uses but does not hold: the end of every crash between a
//! reservation and its write.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Error,
    ledger::{Held, Ledger},
    services::{Holding, Services, owner_of},
};

/// Something that two Services use; people must sort it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The Service that uses what it does not hold, as NAMESPACE/NAME.
    pub service: String,
    /// An address or a node port.
    pub item: String,
    /// Who holds it.
    pub holder: String,
}

/// Remembers from round to round what looked leaked: only what looks so twice is freed, as the first time its Service
/// may just be being written.
#[derive(Debug, Default)]
pub struct Repair {
    suspects: BTreeSet<(String, i64)>,
}

/// The allocations as they were at some moment; Services that are listed afterwards may explain them.
pub struct Books {
    addresses: Vec<Held>,
    ports: Vec<Held>,
}

impl Books {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }
}

impl Services {
    /// Reads everything that is held.
    pub async fn books(&self) -> Result<Books, Error> {
        Ok(Books {
            addresses: self.addresses.all().await?,
            ports: self.ports.all().await?,
        })
    }
}

impl Repair {
    /// One round. `books` must have been read before the Services were listed.
    pub async fn round(
        &mut self,
        allocations: &Services,
        books: &Books,
        services: &[Value],
    ) -> Result<Vec<Clash>, Error> {
        let mut addresses = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for service in services {
            let owner = owner_of(service);
            let holding = Holding::of(service);
            for address in holding.addresses {
                addresses.insert((address.to_string(), owner.clone()));
            }
            for port in holding.node_ports {
                ports.insert((port.to_string(), owner.clone()));
            }
        }
        let mut suspects = BTreeSet::new();
        let mut clashes = Vec::new();
        for (ledger, held, used) in [
            (&allocations.addresses, &books.addresses, &addresses),
            (&allocations.ports, &books.ports, &ports),
        ] {
            self.free_leaked(ledger, held, used, &mut suspects).await?;
            clashes.extend(retake(ledger, held, used).await?);
        }
        self.suspects = suspects;
        Ok(clashes)
    }

    async fn free_leaked(
        &self,
        ledger: &Ledger,
        held: &[Held],
        used: &BTreeSet<(String, String)>,
        suspects: &mut BTreeSet<(String, i64)>,
    ) -> Result<(), Error> {
        for held in held {
            if used.contains(&(held.item.clone(), held.owner.clone())) {
                continue;
            }
            let suspect = (held.item.clone(), held.revision);
            if self.suspects.contains(&suspect) {
                ledger.free_as(held).await?;
                tracing::info!(
                    item = held.item,
                    owner = held.owner,
                    "freed a leaked allocation"
                );
            } else {
                suspects.insert(suspect);
            }
        }
        Ok(())
    }
}

async fn retake(
    ledger: &Ledger,
    held: &[Held],
    used: &BTreeSet<(String, String)>,
) -> Result<Vec<Clash>, Error> {
    let known: BTreeSet<(&str, &str)> = held
        .iter()
        .map(|held| (held.item.as_str(), held.owner.as_str()))
        .collect();
    let mut clashes = Vec::new();
    for (item, owner) in used {
        if known.contains(&(item.as_str(), owner.as_str())) {
            continue;
        }
        if let Some(holder) = ledger.take(item, owner).await?
            && holder.owner != *owner
        {
            clashes.push(Clash {
                service: owner.clone(),
                item: item.clone(),
                holder: holder.owner,
            });
        }
    }
    Ok(clashes)
}
