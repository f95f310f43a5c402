//! The completion indexes of a Job, as its status writes them: "0-3,7".

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::controllers::meta;

/// The annotation and label of a pod's index.
pub const KEY: &str = "batch.kubernetes.io/job-completion-index";

/// A pod's index.
pub fn index_of(pod: &Pod) -> Option<u32> {
    meta::annotation(&pod.metadata, KEY)?.parse().ok()
}

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(BTreeSet<u32>);

impl Indexes {
    /// From "0-3,7"; parts that are none count for nothing.
    pub fn parse(text: &str) -> Self {
        let mut indexes = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
                indexes.extend(first..=last);
            }
        }
        Self(indexes)
    }

    /// "0-3,7".
    pub fn text(&self) -> String {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        let shown = runs.iter().map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        });
        shown.collect::<Vec<_>>().join(",")
    }

    /// Puts one in.
    pub fn insert(&mut self, index: u32) {
        self.0.insert(index);
    }

    /// Whether one is in it.
    pub fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_runs() {
        for text in ["", "0", "0-3", "0-3,7", "1,3,5-6"] {
            assert_eq!(Indexes::parse(text).text(), text);
        }
        let mut indexes = Indexes::parse("0-1,3");
        indexes.insert(2);
        assert_eq!(indexes.text(), "0-3");
    }
}
