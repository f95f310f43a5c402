//! What a test found out of the kernel it runs on, for whoever collects it: `cargo xtask vm` does.

use std::{fs::File, io::Write as _};

/// Adds a line to the file that `PORTOLAN_FACTS` names; shows it where none is named.
///
/// # Panics
/// If the file cannot be written: a fact that is lost would be taken for one that is not so.
pub fn note(fact: &str) {
    let Some(path) = std::env::var_os("PORTOLAN_FACTS") else {
        println!("{fact}");
        return;
    };
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{fact}\n").as_bytes()))
        .expect("facts can be written down");
}
