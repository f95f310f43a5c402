//! Addresses and node ports of Services: filled in before a Service is written, given back when it is not.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::{
    Error,
    addresses::{Addresses, family},
    ledger::Ledger,
};
use crate::api::status::Cause;

mod families;
mod held;

pub use held::Holding;

/// See the file's front page.
pub struct Services {
    pub(super) ranges: Vec<Addresses>,
    pub(super) node_ports: RangeInclusive<u16>,
    pub(super) addresses: Ledger,
    pub(super) ports: Ledger,
    random: Mutex<fastrand::Rng>,
}

/// What was taken for a write that is yet to happen. It must be committed or rolled back; when a crash does neither,
/// the repair loop frees it.
#[must_use = "what is reserved stays taken until it is committed or rolled back"]
pub struct Reservation {
    addresses: Ledger,
    ports: Ledger,
    owner: String,
    taken: Holding,
    given_up: Holding,
}

impl Reservation {
    /// The write took place: what the Service no longer uses is freed.
    pub async fn commit(self) -> Result<(), Error> {
        free(&self.addresses, &self.ports, &self.owner, &self.given_up).await
    }

    /// Hands over what was taken, as (owner, item), to whoever will see whether the write takes place.
    pub(super) fn into_taken(self) -> Vec<(String, String)> {
        let addresses = self.taken.addresses.iter().map(ToString::to_string);
        let ports = self.taken.node_ports.iter().map(ToString::to_string);
        let items: Vec<_> = addresses.chain(ports).collect();
        items
            .into_iter()
            .map(|item| (self.owner.clone(), item))
            .collect()
    }

    /// The write did not take place: what was taken for it is freed.
    pub async fn rollback(self) -> Result<(), Error> {
        free(&self.addresses, &self.ports, &self.owner, &self.taken).await
    }
}

async fn free(
    addresses: &Ledger,
    ports: &Ledger,
    owner: &str,
    holding: &Holding,
) -> Result<(), Error> {
    for address in &holding.addresses {
        addresses.free(&address.to_string(), owner).await?;
    }
    for port in &holding.node_ports {
        ports.free(&port.to_string(), owner).await?;
    }
    Ok(())
}

impl Services {
    pub(super) fn new(
        ranges: Vec<Addresses>,
        node_ports: RangeInclusive<u16>,
        addresses: Ledger,
        ports: Ledger,
        seed: u64,
    ) -> Self {
        Self {
            ranges,
            node_ports,
            addresses,
            ports,
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        }
    }

    /// Fills in what a Service that is about to be written leaves open (families, addresses, node ports) and takes it,
    /// as well as what it asks for by name. `old` is the Service that an update replaces.
    pub async fn reserve(
        &self,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation, Error> {
        held::normalize(service, old)?;
        let before = old.map(Holding::of).unwrap_or_default();
        let mut reservation = Reservation {
            addresses: self.addresses.clone(),
            ports: self.ports.clone(),
            owner: owner_of(service),
            taken: Holding::default(),
            given_up: Holding::default(),
        };
        match self.take_all(service, &before, &mut reservation).await {
            Ok(()) => {
                let after = Holding::of(service);
                reservation.given_up = before.without(&after);
                Ok(reservation)
            }
            Err(error) => {
                reservation.rollback().await?;
                Err(error)
            }
        }
    }

    /// Frees everything that a deleted Service held.
    pub async fn release(&self, service: &Value) -> Result<(), Error> {
        let holding = Holding::of(service);
        free(&self.addresses, &self.ports, &owner_of(service), &holding).await
    }

    /// Frees some of what an owner holds.
    pub(super) async fn free(&self, owner: &str, holding: &Holding) -> Result<(), Error> {
        free(&self.addresses, &self.ports, owner, holding).await
    }

    async fn take_all(
        &self,
        service: &mut Value,
        before: &Holding,
        reservation: &mut Reservation,
    ) -> Result<(), Error> {
        if service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        let configured: Vec<_> = self.ranges.iter().map(Addresses::family).collect();
        families::fill_in(service, &configured)?;
        if service["spec"]["clusterIP"] != "None" {
            self.take_addresses(service, before, reservation).await?;
        }
        self.take_ports(service, before, reservation).await
    }

    async fn take_addresses(
        &self,
        service: &mut Value,
        before: &Holding,
        reservation: &mut Reservation,
    ) -> Result<(), Error> {
        let families: Vec<String> = strings(&service["spec"]["ipFamilies"]);
        let asked = strings(&service["spec"]["clusterIPs"]);
        let mut addresses = Vec::new();
        for (index, wanted) in families.iter().enumerate() {
            let address = match asked.get(index) {
                Some(text) => {
                    let refuse = |why: String| refused(&asked, text, &why);
                    let address: IpAddr = text
                        .parse()
                        .map_err(|_| refuse("must be a valid IP address".to_owned()))?;
                    if family(address) != wanted {
                        return Err(refuse(format!("it is not of the family {wanted}")));
                    }
                    if !before.addresses.contains(&address) {
                        self.take_asked(address, text, &asked, reservation).await?;
                    }
                    address
                }
                None => self.take_any(wanted, reservation).await?,
            };
            addresses.push(address.to_string());
        }
        service["spec"]["clusterIP"] = json!(addresses.first());
        service["spec"]["clusterIPs"] = json!(addresses);
        Ok(())
    }

    /// Takes an address that is asked for by name.
    async fn take_asked(
        &self,
        address: IpAddr,
        text: &str,
        asked: &[String],
        reservation: &mut Reservation,
    ) -> Result<(), Error> {
        let range = self.range_of(family(address));
        if let Some(range) = range
            && !range.contains(address)
        {
            let why = format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                range.cidr()
            );
            return Err(refused(asked, text, &why));
        }
        let is_first = range.is_some_and(|range| range.first() == address);
        let is_reserved = is_first && reservation.owner != KUBERNETES;
        if is_reserved {
            return Err(refused(asked, text, "provided IP is already allocated"));
        }
        let holder = self.take_address(address, reservation).await?;
        if !may_use(holder, reservation) {
            return Err(refused(asked, text, "provided IP is already allocated"));
        }
        Ok(())
    }

    /// Takes any free address of a family; default/kubernetes has the first one, always.
    async fn take_any(&self, family: &str, reservation: &mut Reservation) -> Result<IpAddr, Error> {
        let full = || Error::Full {
            what: format!("a serviceIP of {family}"),
        };
        let range = self.range_of(family).ok_or_else(full)?;
        if reservation.owner == KUBERNETES {
            let first = range.first();
            // Held already means held for this very Service: nobody else gets it.
            self.take_address(first, reservation).await?;
            return Ok(first);
        }
        let candidates = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            range.candidates(&mut random)
        };
        let mut tries = 0;
        let mut known: Option<BTreeSet<String>> = None;
        for address in candidates {
            if known
                .as_ref()
                .is_some_and(|known| known.contains(&address.to_string()))
            {
                continue;
            }
            if self.take_address(address, reservation).await?.is_none() {
                return Ok(address);
            }
            tries += 1;
            // Where free ones are rare it is cheaper to look at all that are taken than to knock at each.
            if tries == 16 {
                let held = self.addresses.all().await?;
                known = Some(held.into_iter().map(|held| held.item).collect());
            }
        }
        Err(full())
    }

    /// Takes an address unless it has a holder, who is returned.
    async fn take_address(
        &self,
        address: IpAddr,
        reservation: &mut Reservation,
    ) -> Result<Option<String>, Error> {
        let held = self
            .addresses
            .take(&address.to_string(), &reservation.owner)
            .await?;
        if held.is_none() {
            reservation.taken.addresses.insert(address);
        }
        Ok(held.map(|held| held.owner))
    }

    fn range_of(&self, family: &str) -> Option<&Addresses> {
        self.ranges.iter().find(|range| range.family() == family)
    }

    async fn take_ports(
        &self,
        service: &mut Value,
        before: &Holding,
        reservation: &mut Reservation,
    ) -> Result<(), Error> {
        if held::needs_node_ports(service) {
            let count = service["spec"]["ports"].as_array().map_or(0, Vec::len);
            // Those asked for by name first, so that none of them is given away by chance.
            for asked in [true, false] {
                for index in 0..count {
                    let port = &service["spec"]["ports"][index];
                    if (held::node_port(port) != 0) != asked {
                        continue;
                    }
                    let number = self
                        .take_port_of(service, index, before, reservation)
                        .await?;
                    service["spec"]["ports"][index]["nodePort"] = json!(number);
                }
            }
        }
        if held::needs_health_check_port(service) {
            let field = "spec.healthCheckNodePort";
            let asked = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
            let number = if asked == 0 {
                self.take_any_port(reservation).await?
            } else {
                self.take_asked_port(asked, field, before, reservation)
                    .await?
            };
            service["spec"]["healthCheckNodePort"] = json!(number);
        }
        Ok(())
    }

    async fn take_port_of(
        &self,
        service: &Value,
        index: usize,
        before: &Holding,
        reservation: &mut Reservation,
    ) -> Result<u16, Error> {
        let ports = service["spec"]["ports"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let port = &ports[index];
        let asked = held::node_port(port);
        let others = || {
            ports
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, port)| port)
        };
        let differs = |other: &Value| held::protocol(other) != held::protocol(port);
        if asked == 0 {
            // DNS and the like: the same port over TCP and UDP gets the same node port.
            let shared = others()
                .filter(|other| other["port"] == port["port"] && differs(other))
                .map(held::node_port)
                .find(|number| *number != 0)
                .filter(|number| {
                    !others().any(|other| held::node_port(other) == *number && !differs(other))
                });
            return match shared.and_then(|number| u16::try_from(number).ok()) {
                Some(shared) => Ok(shared),
                None => self.take_any_port(reservation).await,
            };
        }
        let field = format!("spec.ports[{index}].nodePort");
        if others().any(|other| held::node_port(other) == asked && !differs(other)) {
            return Err(invalid(
                &field,
                &json!(asked),
                "provided port is already allocated",
            ));
        }
        self.take_asked_port(asked, &field, before, reservation)
            .await
    }

    async fn take_asked_port(
        &self,
        asked: u64,
        field: &str,
        before: &Holding,
        reservation: &mut Reservation,
    ) -> Result<u16, Error> {
        let (first, last) = (self.node_ports.start(), self.node_ports.end());
        let number = u16::try_from(asked)
            .ok()
            .filter(|number| self.node_ports.contains(number));
        let Some(number) = number else {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            );
            return Err(invalid(field, &json!(asked), &why));
        };
        let is_ours =
            before.node_ports.contains(&number) || reservation.taken.node_ports.contains(&number);
        if is_ours {
            return Ok(number);
        }
        let holder = self.take_port(number, reservation).await?;
        if may_use(holder, reservation) {
            return Ok(number);
        }
        Err(invalid(
            field,
            &json!(asked),
            "provided port is already allocated",
        ))
    }

    async fn take_any_port(&self, reservation: &mut Reservation) -> Result<u16, Error> {
        let (first, last) = (
            u64::from(*self.node_ports.start()),
            u64::from(*self.node_ports.end()),
        );
        let size = last - first + 1;
        let start = {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.u64(..size)
        };
        for step in 0..size {
            let number =
                u16::try_from(first + (start + step) % size).unwrap_or(*self.node_ports.end());
            if self.take_port(number, reservation).await?.is_none() {
                return Ok(number);
            }
        }
        Err(Error::Full {
            what: "a nodePort".to_owned(),
        })
    }

    /// Takes a port unless it has a holder, who is returned.
    async fn take_port(
        &self,
        number: u16,
        reservation: &mut Reservation,
    ) -> Result<Option<String>, Error> {
        let held = self
            .ports
            .take(&number.to_string(), &reservation.owner)
            .await?;
        if held.is_none() {
            reservation.taken.node_ports.insert(number);
        }
        Ok(held.map(|held| held.owner))
    }
}

/// Whether a Service may have what it asks for by name: nobody holds it, or the Service itself does, by an attempt to
/// write it that a crash ended.
fn may_use(holder: Option<String>, reservation: &Reservation) -> bool {
    holder.is_none_or(|holder| holder == reservation.owner)
}

/// The Service that has the first address of each range.
const KUBERNETES: &str = "default/kubernetes";

/// "NAMESPACE/NAME".
pub(super) fn owner_of(service: &Value) -> String {
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .filter(|item| !item.is_empty())
        .collect()
}

/// A field that has a value that it can't have.
fn invalid(field: &str, value: &Value, why: &str) -> Error {
    Error::Invalid(vec![Cause {
        reason: "FieldValueInvalid".to_owned(),
        message: format!("Invalid value: {value}: {why}"),
        field: field.to_owned(),
    }])
}

fn refused(asked: &[String], address: &str, why: &str) -> Error {
    let why = format!("failed to allocate IP {address}: {why}");
    invalid("spec.clusterIPs", &json!(asked), &why)
}
