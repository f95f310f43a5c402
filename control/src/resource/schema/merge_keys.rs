//! Which lists a strategic merge patch merges element by element, and by which key. Kubernetes keeps this in the tags of
//! its Go types; here it is a table, put into the OpenAPI document and read by the patch.

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

/// The table: type, field, treatment.
const TABLE: &[(&str, &str, Merge)] = &[
    ("ObjectMeta", "finalizers", Merge::AsSet),
    ("ObjectMeta", "ownerReferences", Merge::ByKey("uid")),
    ("PodSpec", "containers", Merge::ByKey("name")),
    ("PodSpec", "initContainers", Merge::ByKey("name")),
    ("PodSpec", "ephemeralContainers", Merge::ByKey("name")),
    ("PodSpec", "volumes", Merge::ByKeyRetainKeys("name")),
    ("PodSpec", "imagePullSecrets", Merge::ByKey("name")),
    ("PodSpec", "hostAliases", Merge::ByKey("ip")),
    ("PodSpec", "resourceClaims", Merge::ByKeyRetainKeys("name")),
    ("PodSpec", "schedulingGates", Merge::ByKey("name")),
    (
        "PodSpec",
        "topologySpreadConstraints",
        Merge::ByKey("topologyKey"),
    ),
    ("Container", "env", Merge::ByKey("name")),
    ("Container", "ports", Merge::ByKey("containerPort")),
    ("Container", "volumeDevices", Merge::ByKey("devicePath")),
    ("Container", "volumeMounts", Merge::ByKey("mountPath")),
    ("EphemeralContainer", "env", Merge::ByKey("name")),
    ("EphemeralContainer", "ports", Merge::ByKey("containerPort")),
    (
        "EphemeralContainer",
        "volumeDevices",
        Merge::ByKey("devicePath"),
    ),
    (
        "EphemeralContainer",
        "volumeMounts",
        Merge::ByKey("mountPath"),
    ),
    ("PodStatus", "conditions", Merge::ByKey("type")),
    ("PodStatus", "podIPs", Merge::ByKey("ip")),
    ("PodStatus", "hostIPs", Merge::ByKey("ip")),
    (
        "PodStatus",
        "resourceClaimStatuses",
        Merge::ByKeyRetainKeys("name"),
    ),
    ("ServiceSpec", "ports", Merge::ByKey("port")),
    ("ServiceStatus", "conditions", Merge::ByKey("type")),
    ("ServiceAccount", "secrets", Merge::ByKey("name")),
    ("NodeSpec", "podCIDRs", Merge::AsSet),
    ("NodeStatus", "addresses", Merge::ByKey("type")),
    ("NodeStatus", "conditions", Merge::ByKey("type")),
    ("NamespaceStatus", "conditions", Merge::ByKey("type")),
    ("DeploymentSpec", "strategy", Merge::RetainKeys),
    ("DeploymentStatus", "conditions", Merge::ByKey("type")),
    ("ReplicaSetStatus", "conditions", Merge::ByKey("type")),
];

/// The treatment of a field of a type, both by their short names.
pub fn merge_of(type_name: &str, field: &str) -> Merge {
    TABLE
        .iter()
        .find(|(of, name, _)| *of == type_name && *name == field)
        .map_or(Merge::Plain, |(_, _, merge)| *merge)
}
