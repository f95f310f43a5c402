//! Reads `fields.txt`: what Kubernetes' type definitions say of fields beyond their JSON types.

use std::collections::HashMap;

use super::Merge;

/// The table; its head explains the notation.
const TEXT: &str = include_str!("fields.txt");

/// Who owns the parts of a list, map or object (server-side apply).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// Objects and maps: a field at a time. Lists: as a whole.
    #[default]
    Plain,
    /// As a whole.
    Atomic,
    /// A list whose elements are told apart by these keys.
    Keyed(Vec<&'static str>),
    /// A list of scalars, each by itself.
    Set,
}

/// What the table says of a field.
#[derive(Clone, Debug, Default)]
pub struct Trait {
    /// How a strategic merge patch treats it.
    pub merge: Merge,
    /// Who owns its parts.
    pub topology: Topology,
}

/// What a number stands for in a protobuf message.
#[derive(Clone, Debug)]
pub enum Part {
    /// A field by its JSON name; whether a zero on the wire is a zero, not an absence.
    Field(&'static str, bool),
    /// A message whose fields JSON shows among its owner's; its definition.
    Inline(String),
}

/// The table, read.
#[derive(Debug)]
pub struct Table {
    traits: HashMap<String, HashMap<&'static str, Trait>>,
    messages: HashMap<String, HashMap<u32, Part>>,
}

impl Table {
    /// Reads the table. It is part of the program: a line that is not well-formed is a mistake in it.
    pub fn read() -> Self {
        let mut table = Self {
            traits: HashMap::new(),
            messages: HashMap::new(),
        };
        let mut package = "";
        for line in TEXT.lines() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                package = name.trim_end_matches(']');
                continue;
            }
            table.message(package, line);
        }
        table
    }

    fn message(&mut self, package: &str, line: &'static str) {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let name = words.next().expect("a line names its type");
        let definition = format!("{package}.{name}");
        let mut parts = HashMap::new();
        let mut traits = HashMap::new();
        for word in words {
            if let Some((number, other)) =
                word.strip_prefix('^').and_then(|rest| rest.split_once(':'))
            {
                let number = number.parse().expect("a number before the colon");
                parts.insert(number, Part::Inline(format!("{package}.{other}")));
                continue;
            }
            let (field, rest) = word.split_once('=').expect("a field has a number");
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let number = rest[..digits].parse().expect("a number after the sign");
            let marks = &rest[digits..];
            parts.insert(number, Part::Field(field, marks.contains('?')));
            if let Some(found) = Trait::parse(marks) {
                traits.insert(field, found);
            }
        }
        self.traits.insert(definition.clone(), traits);
        self.messages.insert(definition, parts);
    }

    /// What is said of a field of a definition, or of a message inlined in it.
    pub fn of(&self, definition: &str, field: &str) -> Trait {
        let own = |name: &str| self.traits.get(name)?.get(field).cloned();
        let inlined = || {
            let mut parts = self.messages.get(definition)?.values();
            parts.find_map(|part| match part {
                Part::Inline(other) => own(other),
                Part::Field(..) => None,
            })
        };
        own(definition).or_else(inlined).unwrap_or_default()
    }

    /// The parts of a message by their numbers.
    pub fn parts(&self, definition: &str) -> Option<&HashMap<u32, Part>> {
        self.messages.get(definition)
    }
}

impl Trait {
    fn parse(marks: &'static str) -> Option<Self> {
        let topology = match marks.split_once('[') {
            Some((_, rest)) => match rest.split_once(']')?.0 {
                "" => Topology::Set,
                keys => Topology::Keyed(keys.split(',').collect()),
            },
            None if marks.contains('!') => Topology::Atomic,
            None => Topology::Plain,
        };
        let merge = match marks.split_once('~').map(|(_, rest)| rest) {
            None => Merge::Plain,
            Some("") => Merge::AsSet,
            Some("$") => Merge::RetainKeys,
            Some(key) => match key.strip_suffix('$') {
                Some(key) => Merge::ByKeyRetainKeys(key),
                None => Merge::ByKey(key),
            },
        };
        (topology != Topology::Plain || merge != Merge::Plain).then_some(Self { merge, topology })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read() {
        let table = Table::read();
        let of = |name: &str, field: &str| table.of(&format!("io.k8s.api.core.v1.{name}"), field);
        let ports = of("Container", "ports");
        assert_eq!(ports.merge, Merge::ByKey("containerPort"));
        assert_eq!(
            ports.topology,
            Topology::Keyed(vec!["containerPort", "protocol"])
        );
        assert_eq!(
            of("PodSpec", "volumes").merge,
            Merge::ByKeyRetainKeys("name")
        );
        assert_eq!(of("PodSpec", "nodeSelector").topology, Topology::Atomic);
        assert_eq!(of("Container", "image").merge, Merge::Plain);
        let meta = table.of(
            "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
            "finalizers",
        );
        assert_eq!((meta.merge, meta.topology), (Merge::AsSet, Topology::Set));
        let volume = table.parts("io.k8s.api.core.v1.Volume").expect("a message");
        assert!(
            matches!(&volume[&2], Part::Inline(name) if name == "io.k8s.api.core.v1.VolumeSource")
        );
    }
}
