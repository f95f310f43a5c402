//! How a strategic merge patch treats a field. Kubernetes keeps this in the tags of its Go types; `fields.txt` has it.

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merge {
    /// A map merges, a list or scalar is replaced.
    #[default]
    Plain,
    /// A list of objects merges by this key.
    ByKey(&'static str),
    /// A list of scalars merges as a set.
    AsSet,
    /// A map of which only the keys named in `$retainKeys` stay.
    RetainKeys,
    /// A list of objects merges by this key, and each element honours `$retainKeys`.
    ByKeyRetainKeys(&'static str),
}

impl Merge {
    /// `x-kubernetes-patch-strategy`, where it has one.
    pub fn strategy(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::ByKey(_) | Self::AsSet => Some("merge"),
            Self::RetainKeys => Some("retainKeys"),
            Self::ByKeyRetainKeys(_) => Some("merge,retainKeys"),
        }
    }

    /// `x-kubernetes-patch-merge-key`, where it has one.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Self::ByKey(key) | Self::ByKeyRetainKeys(key) => Some(key),
            Self::Plain | Self::AsSet | Self::RetainKeys => None,
        }
    }
}
