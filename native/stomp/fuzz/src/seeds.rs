//! Writes the conformance cases and the recordings of brokers as seeds, into one directory for each
//! target: `seeds DIRECTORY`.

#[path = "../../tests/suite/support.rs"]
#[allow(dead_code)]
mod support;

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let directory = env::args().nth(1).expect("a directory");
    for target in ["decoder", "session", "escapes"] {
        let directory = Path::new(&directory).join(target);
        fs::create_dir_all(&directory)?;
        for (name, seed) in support::seeds() {
            fs::write(directory.join(name), seed)?;
        }
    }
    Ok(())
}
