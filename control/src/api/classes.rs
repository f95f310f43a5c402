//! Admission by class: a new pod gets the priority of its class, a new claim that names no storage class the default
//! one, and only one priority class may be the default.
//!
//! Source: k8s.io/kubernetes, `plugin/pkg/admission/priority` and `.../storage/storageclass/setdefault`.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::admission::{Admission, Operation, Review};
use super::object::parse;
use super::{ResourceId, Status, meta};
use crate::resource::columns::storage::IS_DEFAULT;
use crate::resource::rows::{PODS, PRIORITY_CLASSES, VOLUME_CLAIMS};
use crate::store::{RangeQuery, Store};

/// Where priority classes are in the store.
const PRIORITIES: &str = "/registry/scheduling.k8s.io/priorityclasses/";
/// Where storage classes are in the store.
const STORAGE: &str = "/registry/storage.k8s.io/storageclasses/";
/// The policy of pods whose class says none.
const PREEMPT: &str = "PreemptLowerPriority";

/// See the file's front page.
pub struct ClassAdmission {
    store: Arc<dyn Store>,
}

impl ClassAdmission {
    /// Reads classes from the store.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store })
    }

    async fn all(&self, prefix: &'static str) -> Result<Vec<Value>, Status> {
        let query = RangeQuery {
            prefix: prefix.into(),
            ..RangeQuery::default()
        };
        let range = self.store.range(query).await?;
        let parsed = range
            .items
            .iter()
            .map(|item| Ok(parse(item)?.value.clone()));
        parsed.collect()
    }

    /// The class of pods that name none: of several, the one with the lowest value.
    async fn default_priority(&self) -> Result<Option<Value>, Status> {
        let classes = self.all(PRIORITIES).await?;
        let defaults = classes
            .into_iter()
            .filter(|class| class["globalDefault"] == true);
        Ok(defaults.min_by_key(|class| meta::number(class, &["value"])))
    }

    async fn admit_pod(&self, name: &str, pod: &mut Value) -> Result<(), Status> {
        let refuse = |why: &str| Err(Status::forbidden(PODS, name, why));
        let wanted = meta::text(pod, &["spec", "priorityClassName"]).to_owned();
        let class = if wanted.is_empty() {
            self.default_priority().await?
        } else {
            let key = format!("{PRIORITIES}{wanted}");
            let Some(stored) = self.store.get(key.as_bytes()).await? else {
                return refuse(&format!("no PriorityClass with name {wanted} was found"));
            };
            Some(parse(&stored)?.value.clone())
        };
        let (mut priority, mut policy) = (0, PREEMPT.to_owned());
        if let Some(class) = &class {
            priority = meta::number(class, &["value"]).unwrap_or(0);
            let own = meta::text(class, &["preemptionPolicy"]);
            if !own.is_empty() {
                own.clone_into(&mut policy);
            }
        }
        if let Some(given) = meta::number(pod, &["spec", "priority"])
            && given != priority
        {
            return refuse(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
                 controller computed {priority} from the given PriorityClass name"
            ));
        }
        let given = meta::text(pod, &["spec", "preemptionPolicy"]);
        if !given.is_empty() && given != policy {
            return refuse(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            ));
        }
        let spec = meta::child_mut(pod, "spec");
        if let Some(class) = &class {
            spec.insert("priorityClassName".to_owned(), json!(meta::name(class)));
        }
        spec.insert("priority".to_owned(), json!(priority));
        spec.insert("preemptionPolicy".to_owned(), json!(policy));
        Ok(())
    }

    /// The newest of the classes that are marked as the default.
    async fn admit_claim(&self, claim: &mut Value) -> Result<(), Status> {
        if claim["spec"].get("storageClassName").is_some() {
            return Ok(());
        }
        let classes = self.all(STORAGE).await?;
        let marked = classes
            .iter()
            .filter(|class| meta::text(class, &["metadata", "annotations", IS_DEFAULT]) == "true");
        let newest = marked.max_by(|one, other| {
            let made = |class| meta::text(class, &["metadata", "creationTimestamp"]);
            let by_name = || meta::name(other).cmp(meta::name(one));
            made(*one).cmp(made(*other)).then_with(by_name)
        });
        if let Some(class) = newest {
            let spec = meta::child_mut(claim, "spec");
            spec.insert("storageClassName".to_owned(), json!(meta::name(class)));
        }
        Ok(())
    }

    async fn admit_priority_class(&self, name: &str, class: &Value) -> Result<(), Status> {
        if class["globalDefault"] != true {
            return Ok(());
        }
        match self.default_priority().await? {
            Some(other) if meta::name(&other) != name => {
                let other = meta::name(&other);
                let why = format!(
                    "PriorityClass {other} is already marked as default. Only one default can exist"
                );
                Err(Status::forbidden(PRIORITY_CLASSES, name, &why))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Admission for ClassAdmission {
    fn handles(&self, resource: ResourceId) -> bool {
        [PODS, VOLUME_CLAIMS, PRIORITY_CLASSES].contains(&resource)
    }

    async fn admit(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Status> {
        let name = &review.key.name;
        if review.subresource.is_some() {
            return Ok(());
        }
        match review.operation {
            Operation::Create if review.resource == PODS => self.admit_pod(name, object).await,
            Operation::Create if review.resource == VOLUME_CLAIMS => self.admit_claim(object).await,
            Operation::Create | Operation::Update if review.resource == PRIORITY_CLASSES => {
                self.admit_priority_class(name, object).await
            }
            _ => Ok(()),
        }
    }

    async fn committed(&self, _: &Review<'_>, _: &Value) {}

    async fn abandoned(&self, _: &Review<'_>, _: &Value) {}
}
