//! The rows of jobs.

use k8s_openapi::api::batch::v1::{CronJob, Job};

use super::{id, row, status};
use crate::resource::kinds::jobs::{CronJobs, Jobs};
use crate::resource::schema::Builder;
use crate::resource::{Generation, Resource};

/// The rows, in the order of discovery.
pub fn rows(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            short_names: &["cj"],
            categories: &["all"],
            subresources: const { &[status("batch", "v1", "CronJob")] },
            generation: Generation::Spec,
            ..row::<CronJob>(
                builder,
                id("batch", "v1", "cronjobs"),
                "CronJob",
                "cronjob",
                CronJobs,
            )
        },
        Resource {
            categories: &["all"],
            subresources: const { &[status("batch", "v1", "Job")] },
            generation: Generation::Spec,
            selectable: &[("status.successful", "0")],
            ..row::<Job>(builder, id("batch", "v1", "jobs"), "Job", "job", Jobs)
        },
    ]
}
