//! The rows of volumes that outlive pods, and of priorities.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;

use super::{id, row, status};
use crate::api::ResourceId;
use crate::resource::kinds::persistent_volumes::{
    PersistentVolumeClaims, PersistentVolumes, StorageClasses,
};
use crate::resource::kinds::priorities::PriorityClasses;
use crate::resource::schema::Builder;
use crate::resource::{Generation, Resource};

/// Persistent volumes.
pub const PERSISTENT_VOLUMES: ResourceId = id("", "v1", "persistentvolumes");
/// Claims of persistent volumes.
pub const VOLUME_CLAIMS: ResourceId = id("", "v1", "persistentvolumeclaims");
/// Storage classes.
pub const STORAGE_CLASSES: ResourceId = id("storage.k8s.io", "v1", "storageclasses");
/// Priority classes.
pub const PRIORITY_CLASSES: ResourceId = id("scheduling.k8s.io", "v1", "priorityclasses");

/// The rows of the core group, in the order of discovery.
pub fn core(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["pvc"],
            subresources: const { &[status("", "v1", "PersistentVolumeClaim")] },
            ..row::<PersistentVolumeClaim>(
                builder,
                VOLUME_CLAIMS,
                "PersistentVolumeClaim",
                "persistentvolumeclaim",
                PersistentVolumeClaims,
            )
        },
        Resource {
            short_names: &["pv"],
            namespaced: false,
            subresources: const { &[status("", "v1", "PersistentVolume")] },
            ..row::<PersistentVolume>(
                builder,
                PERSISTENT_VOLUMES,
                "PersistentVolume",
                "persistentvolume",
                PersistentVolumes,
            )
        },
    ]
}

/// The rows of other groups.
pub fn others(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["pc"],
            namespaced: false,
            generation: Generation::Content,
            ..row::<PriorityClass>(
                builder,
                PRIORITY_CLASSES,
                "PriorityClass",
                "priorityclass",
                PriorityClasses,
            )
        },
        Resource {
            short_names: &["sc"],
            namespaced: false,
            ..row::<StorageClass>(
                builder,
                STORAGE_CLASSES,
                "StorageClass",
                "storageclass",
                StorageClasses,
            )
        },
    ]
}
