//! A layer of the engine uses only the layers below it: the order that `lib.rs` gives.

use std::fs;
use std::path::Path;

/// From the ground up.
const LAYERS: [&str; 14] = [
    "processor",
    "wire",
    "sys",
    "spare_buffers",
    "process",
    "shm",
    "uring",
    "stats",
    "config",
    "worker",
    "server",
    "client",
    "pool",
    "ipc",
];

/// The layers that a piece of code names as `crate::LAYER`. Comments may refer to any.
fn used(code: &str) -> impl Iterator<Item = &str> {
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|path| path.split(|c: char| !c.is_ascii_lowercase() && c != '_'))
        .filter_map(|mut words| words.next())
}

/// Adds what is wrong in a file, or in the files below a directory. Tests may use everything.
fn check(path: &Path, height: usize, wrong: &mut Vec<String>) {
    let stem = path.file_stem().expect("a name").to_str().expect("UTF-8");
    if ["tests", "loom_models"].contains(&stem) {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            check(&entry.expect("an entry").path(), height, wrong);
        }
        return;
    }
    let text = fs::read_to_string(path).expect("a source file");
    let code = text.split("#[cfg(test)]\nmod tests").next().expect("text");
    for layer in used(code) {
        match LAYERS.iter().position(|name| *name == layer) {
            Some(other) if other <= height => {}
            _ => wrong.push(format!("{} uses {layer}", path.display())),
        }
    }
}

#[test]
fn a_layer_uses_only_those_below_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (height, layer) in LAYERS.iter().enumerate() {
        let file = source.join(format!("{layer}.rs"));
        let path = match file.exists() {
            true => file,
            false => source.join(layer),
        };
        check(&path, height, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
