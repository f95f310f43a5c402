//! Starts cargo from inside of cargo.
//!
//! `cargo xtask` runs us with variables that describe our own package. A cargo that inherited them would believe that the
//! environment of every build script has changed since the user's last `cargo build`, and compile half the world again.

use std::{env, process::Command};

/// A cargo that builds as the user's own would.
pub fn as_user() -> Command {
    stripped(is_of_outer_package)
}

/// A cargo that is told its compiler by us: whatever chose the outer one's is taken away too.
pub fn with_any_compiler() -> Command {
    stripped(|name| {
        is_of_outer_package(name)
            || name.starts_with("RUSTC")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_TARGET_")
            || matches!(
                name,
                "RUSTFLAGS" | "RUSTDOCFLAGS" | "RUSTUP_TOOLCHAIN" | "CARGO_ENCODED_RUSTFLAGS"
            )
    })
}

fn stripped(is_unwanted: impl Fn(&str) -> bool) -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in env::vars_os() {
        if is_unwanted(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command
}

/// What cargo sets for the programs and tests that it runs.
fn is_of_outer_package(name: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "CARGO" | "CARGO_PRIMARY_PACKAGE" | "CARGO_TARGET_TMPDIR" | "OUT_DIR"
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_inner_cargo_does_not_hear_of_our_package() {
        for command in [as_user(), with_any_compiler()] {
            let removed: BTreeSet<String> = command
                .get_envs()
                .filter(|(_, value)| value.is_none())
                .map(|(name, _)| name.to_string_lossy().into_owned())
                .collect();
            // Cargo sets these for every test that it runs.
            assert!(removed.contains("CARGO_MANIFEST_DIR"), "{removed:?}");
            assert!(removed.contains("CARGO_PKG_NAME"), "{removed:?}");
            assert!(!removed.contains("CARGO_HOME"), "{removed:?}");
            assert!(!removed.contains("PATH"), "{removed:?}");
        }
    }

    #[test]
    fn a_compiler_that_the_user_chose_is_kept_unless_we_choose() {
        assert!(!is_of_outer_package("RUSTUP_TOOLCHAIN"));
        assert!(!is_of_outer_package("RUSTC_WRAPPER"));
        assert!(!is_of_outer_package("CARGO_TARGET_DIR"));
    }
}
