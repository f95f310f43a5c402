//! Disruption budgets, as far as preemption looks at them.

use std::collections::BTreeSet;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::{demand::Demand, terms::Selector};

/// A budget.
#[derive(Clone, Debug)]
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i64,
    disrupted: BTreeSet<String>,
}

impl Budget {
    /// Reads a budget of a namespace.
    pub fn of(budget: &PodDisruptionBudget, namespace: &str) -> Self {
        let status = budget.status.clone().unwrap_or_default();
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let disrupted = status.disrupted_pods.unwrap_or_default();
        Self {
            namespace: namespace.to_owned(),
            selector: Selector::of(selector),
            allowed: status.disruptions_allowed.map_or(0, i64::from),
            disrupted: disrupted.into_keys().collect(),
        }
    }

    /// Whether a pod is one of those whose disruption it counts.
    fn covers(&self, demand: &Demand) -> bool {
        demand.key.namespace.as_deref() == Some(self.namespace.as_str())
            && self.selector.matches(&demand.labels)
            && !self.disrupted.contains(&demand.key.name)
    }
}

/// Which of some pods could not go, one after the other, without a budget being overdrawn.
pub fn violations<'a>(
    budgets: &(impl Iterator<Item = &'a Budget> + Clone),
    victims: &[&Demand],
) -> Vec<bool> {
    let mut left: Vec<_> = budgets.clone().map(|budget| budget.allowed).collect();
    let mut violates = |victim: &Demand| {
        let mut is_over = false;
        for (budget, left) in budgets.clone().zip(&mut left) {
            if budget.covers(victim) {
                *left -= 1;
                is_over |= *left < 0;
            }
        }
        is_over
    };
    victims.iter().map(|victim| violates(victim)).collect()
}
