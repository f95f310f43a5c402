//! Health: `/livez`, `/readyz` and `/healthz`, with the single checks for those who ask.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use http::{Response, StatusCode};

use super::respond;
use crate::api::engine::Engine;

/// What must hold before the server is ready.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Vec<(String, Check)>>>);

/// One thing that must hold; it does not until it is passed.
#[derive(Clone, Default)]
pub struct Check(Arc<AtomicBool>);

impl Check {
    /// It holds.
    pub fn pass(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// It does not hold.
    pub fn fail(&self) {
        self.0.store(false, Ordering::Release);
    }

    fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Health {
    /// Adds a check to what readiness needs.
    pub fn check(&self, name: &str) -> Check {
        let check = Check::default();
        self.checks().push((name.to_owned(), check.clone()));
        check
    }

    fn checks(&self) -> std::sync::MutexGuard<'_, Vec<(String, Check)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn results(&self) -> Vec<(String, bool)> {
        self.checks()
            .iter()
            .map(|(name, check)| (name.clone(), check.holds()))
            .collect()
    }
}

/// Answers a health path ("livez", "readyz", "healthz"), or one check of it.
pub async fn answer(
    endpoint: &str,
    only: Option<&str>,
    verbose: bool,
    engine: &Engine,
    health: &Health,
) -> Response<Body> {
    let mut results = vec![("ping".to_owned(), true)];
    if endpoint != "livez" {
        results.push(("etcd".to_owned(), engine.check_store().await.is_ok()));
        results.extend(health.results());
    }
    if let Some(only) = only {
        results.retain(|(name, _)| name == only);
        if results.is_empty() {
            return respond::text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
        }
    }
    let failed = results.iter().any(|(_, holds)| !holds);
    let code = if failed {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::OK
    };
    if !failed && !verbose {
        return respond::text(code, "ok".to_owned());
    }
    let mut text = String::new();
    for (name, holds) in results {
        let line = if holds {
            format!("[+]{name} ok\n")
        } else {
            format!("[-]{name} failed: reason withheld\n")
        };
        text.push_str(&line);
    }
    let end = if failed { "failed" } else { "passed" };
    respond::text(code, format!("{text}{endpoint} check {end}\n"))
}
